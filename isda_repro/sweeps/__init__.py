"""Sweeps: run what a table still lacks, on this machine or on SLURM, and show or cancel its runs."""
