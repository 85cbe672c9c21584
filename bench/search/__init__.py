"""`bench search`: a recipe's settings, tried on held-out training images."""
