"""`appliance hsm check`: what it finds, on real tokens and on sessions that answer otherwise."""
