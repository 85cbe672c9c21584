"""The report: its tables, figures, lists and sections; and the commands `table` and `compare`."""
