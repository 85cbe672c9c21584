"""swap_fast/callbacks: say here what is in this package."""
