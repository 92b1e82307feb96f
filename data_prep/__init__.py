"""Raw images to shards: list, clean, lay out, write, verify."""
