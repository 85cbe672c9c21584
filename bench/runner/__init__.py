"""A run: its session, ranks, resuming, parts, SLURM, profiler, and `bench watch`."""
