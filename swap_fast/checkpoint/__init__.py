"""swap_fast/checkpoint: say here what is in this package."""
