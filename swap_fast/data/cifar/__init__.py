"""swap_fast/data/cifar: say here what is in this package."""
