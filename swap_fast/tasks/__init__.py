"""What a run trains on: CIFAR on the device, ImageNet decoded as it is needed."""
