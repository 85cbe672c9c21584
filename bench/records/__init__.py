"""bench/records: say here what is in this package."""
