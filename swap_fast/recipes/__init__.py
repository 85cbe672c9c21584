"""Tables 3 to 6, DAWNBench and forms for two CPU cores, as functions."""
