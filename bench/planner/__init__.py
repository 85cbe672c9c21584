"""bench/planner: say here what is in this package."""
