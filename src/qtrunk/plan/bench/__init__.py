"""Figures of speed, each beside a rival where there is one: `qtrunk bench`."""
