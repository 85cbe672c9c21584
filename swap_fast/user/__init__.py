"""swap_fast/user: say here what is in this package."""
