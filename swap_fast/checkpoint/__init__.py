"""A run on disk: checkpoint files, the run's folder, and the lock of the process that is at it."""
