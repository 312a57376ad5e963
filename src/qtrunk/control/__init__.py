"""The control plane without I/O: routes and policy of a whole network, alarms. Nothing here ever holds key."""
