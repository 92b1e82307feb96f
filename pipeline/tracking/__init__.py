"""What a run tells the outside: a spool on disk, its sender to MLflow, and the model registry."""
