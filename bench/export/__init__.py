"""bench/export: say here what is in this package."""
