"""Running what a table still misses: on this machine or on SLURM, with status and cancel."""
