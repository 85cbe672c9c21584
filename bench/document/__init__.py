"""bench/document: say here what is in this package."""
