"""The real world: one trusted node, its supervisor and its certificates."""
