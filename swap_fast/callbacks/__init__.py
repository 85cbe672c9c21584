"""What is told of a run while it runs: events, progress on a screen, trackers."""
