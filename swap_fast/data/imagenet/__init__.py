"""swap_fast/data/imagenet: say here what is in this package."""
