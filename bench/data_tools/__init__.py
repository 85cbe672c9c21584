"""bench/data_tools: say here what is in this package."""
