"""swap_fast/recipes: say here what is in this package."""
