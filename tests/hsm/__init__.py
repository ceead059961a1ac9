"""The HSM on a real SoftHSM token; what cannot be had of a real module is a fake named so."""
