"""EfficientNetV2 and EfficientNet: a table of rows, the modules they become, and their counts."""
