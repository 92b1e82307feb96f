"""The jobs that `python -m pipeline` runs; each opens the parts it needs, in data-flow order."""
