"""Networks far larger than one machine can run as processes: a generated backbone, and its keys by the day."""
