"""Everything that touches PKCS#11: the only importer of `pkcs11`. One thread of a process may use it."""
