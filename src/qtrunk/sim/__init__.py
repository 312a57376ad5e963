"""The virtual worlds: the simulated fibre as a process; whole networks under one seed (`network`, `soak`)."""
