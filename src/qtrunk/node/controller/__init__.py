"""The controller as a process: polls nodes, plans, hands out routes, keeps what it heard, takes over."""
