"""A whole network of the production nodes in one process, under a virtual clock and with faults from one seed."""
