"""Scripts for many SIMs from an export file: no ledger, no HSM. Keys come through a descriptor or in the file."""
