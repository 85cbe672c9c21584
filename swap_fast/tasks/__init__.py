"""What a run trains on: CIFAR, resident on the device, and ImageNet, a tree of files."""
