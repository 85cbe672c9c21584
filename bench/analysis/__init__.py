"""What runs show: the paper's claims, tests against the paper, comparisons, stability, energy."""
