"""Run records: which may be put together, the paper's figures and Tables 1 to 4, times, energy."""
