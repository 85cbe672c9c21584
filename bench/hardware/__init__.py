"""bench/hardware: say here what is in this package."""
