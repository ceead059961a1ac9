"""Fuzzing: one table of targets (targets.py), two drivers.

`make test` replays the seeds, the regressions and a fixed number of mutations of each target (test_targets.py).
`make fuzz` searches, guided by coverage, and each time elsewhere (__main__.py). An input that it leaves in build/fuzz
goes into regressions/<target>/ with the fix of what it found.
"""
