"""`appliance hsm check`: what a token is, does and lets be done to it. Nothing here makes an object on the token."""
