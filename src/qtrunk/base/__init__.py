"""What everything stands on: errors, identifiers, secrets, ports, wire encoding."""
