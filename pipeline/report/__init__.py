"""One HTML page about finished runs, without a single request to anywhere."""
