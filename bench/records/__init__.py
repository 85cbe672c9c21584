"""Run records: which may be put together, the paper's published figures, Tables 1 to 4."""
