"""swap_fast/averaging_files: say here what is in this package."""
