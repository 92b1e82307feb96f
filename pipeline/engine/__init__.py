"""The training loop: it knows when, the strategy knows how."""
