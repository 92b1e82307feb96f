"""Checkpoints: whole, pickle-free, verified, and readable by any world and strategy."""
