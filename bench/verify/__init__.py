"""`python -m bench verify-gpu`: checks of what only a GPU can show; most have a form for CPUs.

`command` runs the checks and writes a record, `check` is one check and the process that runs it.
The checks: of the step (`step`), the training loop (`loop`), the input (`data`), the memory and
the speed (`speed`), the ranks (`ranks`) and whole runs (`runs`). `equivalence` compares a replayed
step with the eager one.
"""
