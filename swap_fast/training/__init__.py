"""swap_fast/training: say here what is in this package."""
