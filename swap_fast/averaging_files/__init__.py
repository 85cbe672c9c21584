"""Average finished models from files: read them, average, evaluate, report, write."""
