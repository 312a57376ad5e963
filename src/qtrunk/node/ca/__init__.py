"""The built-in certificate authority: who is let into the network, for how long, and who is put out again."""
