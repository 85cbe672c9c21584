"""The report: its tables, sections, pages, and the runs that a table still lacks."""
