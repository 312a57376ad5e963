"""qtrunk: the open software stack of a quantum-secured trunk line, from photons to protected files."""

__version__ = "0.1.0"
