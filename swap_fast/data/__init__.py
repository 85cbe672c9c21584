"""CIFAR on disk, on the device, and in batches."""
