"""Tests of the virtual SIM; `packages` seals and `host` sends, for tests only."""
