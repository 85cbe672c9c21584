"""A rank's training: steps, capture, all-reduce, optimizer, weights, batch norm, and `Trainer`."""
