"""`python -m bench search`: a grid of a recipe's settings, compared on held-out training images.

`command` runs it, and draws the table and the figure; `grid` has the options, the settings and the
points; `study` queues the points in a database (Optuna), `trials` runs one.
"""
