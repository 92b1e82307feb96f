"""What would stop a job or cost it work, found before it is queued and again as it starts."""
