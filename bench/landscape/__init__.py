"""bench/landscape: say here what is in this package."""
