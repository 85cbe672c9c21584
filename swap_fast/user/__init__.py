"""`swap_fast.swap`: SWAP of any net, data, loss and optimizer."""
