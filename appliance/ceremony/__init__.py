"""Making every long-lived key, from components or inside the HSM. Offline: it holds the PIN itself, the vaults rest."""
