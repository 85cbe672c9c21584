"""One rank's training: steps, capture, optimizer, weights, batch norm, clock, and the `Trainer`."""
