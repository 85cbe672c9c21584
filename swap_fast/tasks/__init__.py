"""swap_fast/tasks: say here what is in this package."""
