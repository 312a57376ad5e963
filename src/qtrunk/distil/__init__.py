"""The two-party protocol that turns detections into secret key."""
