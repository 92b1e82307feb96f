"""What a person starts: supervised runs on SLURM or on this host, chains of jobs, preflights."""
