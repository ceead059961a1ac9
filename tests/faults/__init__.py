"""The n-th PKCS#11 call goes wrong: for every n of what a vault does with its token, in every way the shim has.

`calls` makes the call fail, before or after it has acted, or that call and all after it; `ends` makes it hang, or takes
the process with it. `python -m tests.faults` runs all of it and prints the counts; the tests run what a gate can bear.
"""
