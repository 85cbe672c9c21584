"""Averages of finished checkpoints: uniform and greedy soups, tested before and after."""
