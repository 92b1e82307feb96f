"""Optimizer, weight groups, moving average and losses."""
