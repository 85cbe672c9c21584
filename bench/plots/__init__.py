"""Figures 1, 5 and 6, the time laps, and the style of every figure."""
