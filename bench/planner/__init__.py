"""`python -m bench plan`: the time, memory and cost of a recipe, before it is run.

`command` makes the plan. `workload` counts a recipe's work, `model` predicts its time, `measure`
times this machine. `scaling` shows phase 1 on more devices, `overlap` when gradients are worth
summing in buckets, `check` compares the models with the paper.
"""
