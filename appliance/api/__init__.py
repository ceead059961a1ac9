"""The public API: stubs generated from `proto/` in `v1`, and errors on the wire in `status`."""
