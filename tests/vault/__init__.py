"""Tests of the vault: its thread and service with a fake engine, its process with a real token."""
