"""Command APDUs for SIMs: the SCP03 secure channel and delivery scripts. No I/O, no clock, no randomness."""
