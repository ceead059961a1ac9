"""Ceremonies on a real SoftHSM token."""
