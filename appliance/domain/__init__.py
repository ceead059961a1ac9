"""What the appliance is about, as pure values and rules: no I/O, no clock, no randomness, no secret key."""
