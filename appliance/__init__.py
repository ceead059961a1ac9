"""HSM-backed issuance of JPKI user authentication keys into smartphone SIMs."""
