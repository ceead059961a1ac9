"""The boundary: what one full run of the appliance asked of its token, and what it left anywhere else.

`history` tells the life of every key from the call log of tests/shim, `rules` what must hold of it, `known` the secrets
that the run should have kept, in every form in which they might show.
"""
