"""bench/runner: say here what is in this package."""
