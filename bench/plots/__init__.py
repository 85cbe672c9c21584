"""Figures 1, 5 and 6, and the laps of runs; and how every figure is styled and saved."""
