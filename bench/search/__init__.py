"""bench/search: say here what is in this package."""
