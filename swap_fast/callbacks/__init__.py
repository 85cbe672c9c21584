"""A run watched while it runs: events, progress on a screen, trackers, ranks that hang."""
