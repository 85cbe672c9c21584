"""CIFAR: files, augmentation plans, and loaders (resident tensor, DALI, torchvision)."""
