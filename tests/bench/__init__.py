"""What `make bench` measures, and tests that it measures what it says."""
