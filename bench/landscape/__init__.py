"""`python -m bench figure`: Figures 2, 3 and 4, measured on the models of a run.

`figure` runs the command, `measure` finds the run and measures it, `parallel_points` evaluates
points in several processes; `records` writes and reads the results, `plots` draws them.
"""
