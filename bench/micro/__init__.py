"""bench/micro: say here what is in this package."""
