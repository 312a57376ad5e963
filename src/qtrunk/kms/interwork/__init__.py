"""Keys between our network and a foreign one whose key manager stands in the same room (ETSI GS QKD 020 V1.1.1)."""
