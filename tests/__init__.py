"""Tests; the folders mirror the package. `vectors/` holds known answers, each with its origin."""
