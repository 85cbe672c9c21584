"""`bench micro`: the step, input, workers and collectives, timed with others in turns."""
