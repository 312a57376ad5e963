"""The topology file."""
