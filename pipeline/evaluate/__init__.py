"""Exact evaluation: every image of a split once, whatever the number of ranks."""
