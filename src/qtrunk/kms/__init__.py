"""Key life and the sealed key store of one node."""
