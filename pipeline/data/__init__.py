"""Shards to batches: manifest and index, the order of samples, decoding, augmenting, loading."""
