"""Tests on a real PC/SC stack; `stack` gives each its own reader with a virtual SIM in it."""
