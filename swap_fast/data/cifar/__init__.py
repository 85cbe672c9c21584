"""CIFAR-10 and -100: files, the augmentation plan, and what makes batches of it."""
