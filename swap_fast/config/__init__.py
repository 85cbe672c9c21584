"""Settings as frozen dataclasses: phases, recipes, precision and execution."""
