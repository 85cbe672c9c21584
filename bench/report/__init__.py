"""The report: tables, claims, comparisons, sections, pages, and the runs that a table lacks."""
