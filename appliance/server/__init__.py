"""The public API: mutual TLS, roles, errors on the wire, readiness. It translates and decides nothing else.

What a call does stands in `issuing`; each service here turns messages into its arguments and its records into messages.
"""
