"""Carrying an end-to-end key over trusted nodes, hop by hop."""
