"""`python -m bench micro`: times a part of the work and other implementations of it, in turns.

`command` runs it, `comparisons` lists the variants, `interleave` times them. The variants are in
`data`, `step` and `workers`, all-reduces in `collective`; `peak` has the device's peak and the
counted cost. `records` and `tables` write and show the results.
"""
