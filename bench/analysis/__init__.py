"""bench/analysis: say here what is in this package."""
