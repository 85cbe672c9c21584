"""swap_fast/config: say here what is in this package."""
