"""A run reported while it runs: events, progress on a screen, trackers."""
