"""The use cases: what happens between the public API, the ledger and the vaults, and in which order.

Order is the safety here: reserve, attempt, act, record. Nothing here speaks the public API; only `vaults` and `link`
import grpc.
"""
