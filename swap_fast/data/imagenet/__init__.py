"""ImageNet as a tree of files: `scan`, `files`, `crops`; `batches` by `dali` or `torchvision`."""
