"""Trees of images: scan, crop plans, and loaders (DALI, torchvision)."""
