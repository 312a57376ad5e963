"""The virtual world: the simulated fibre as a process."""
