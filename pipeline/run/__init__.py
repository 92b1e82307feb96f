"""A run on disk: its folder, its outcome and the lease that keeps a second writer out."""
