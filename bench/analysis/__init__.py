"""What the records say: claims, verdicts, comparisons, sampling, stability, energy."""
