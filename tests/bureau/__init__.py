"""Tests of `appliance scripts`."""
