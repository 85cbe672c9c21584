"""A tree of image files: scan, crops, and what decodes batches of them."""
