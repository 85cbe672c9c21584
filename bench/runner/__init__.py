"""A run: the launching process, one rank, run folders, SLURM, profiler, watching."""
