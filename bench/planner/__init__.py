"""`bench plan`: expected time, memory, traffic and cost of a recipe on given hardware."""
