"""Planning and experiments: rates of links that do not exist yet."""
