"""A vault: the only process of the running service with the PKCS#11 module, behind a socket of one machine.

No database, no network beyond AF_UNIX. `main` puts it together; `supervisor` starts it.
"""
