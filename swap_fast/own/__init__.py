"""SWAP of a user's own net, data and optimizer: the parts of `swap_fast.swap`."""
