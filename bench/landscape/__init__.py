"""Figures 2 to 4: planes and cosines, measured from a run's checkpoints, and drawn."""
