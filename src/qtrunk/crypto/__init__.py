"""Universal hashing, one-time pad and Wegman-Carter authentication."""
