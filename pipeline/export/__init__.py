"""A finished model outside of its run: the sealed package and predictions with it."""
