"""bench/plots: say here what is in this package."""
