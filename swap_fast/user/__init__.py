"""`swap_fast.swap`: SWAP of any net, on any data, with any optimizer and loss."""
