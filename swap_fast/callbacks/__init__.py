"""What follows a run: its events, the logger that emits them, the screen and trackers."""
