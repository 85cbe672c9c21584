"""bench/verify: say here what is in this package."""
