"""bench/report: say here what is in this package."""
