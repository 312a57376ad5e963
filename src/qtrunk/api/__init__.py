"""One file per standard: thin translators between the wire and our own words."""
