"""Training of EfficientNetV2 and EfficientNet on SLURM clusters, from shards to registry."""
