"""The control plane without I/O: routes and policy of a whole network, alarms. No package here ever sees key."""
