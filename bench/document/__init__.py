"""Documents and tables as data, and their formats: Markdown, HTML, CSV, LaTeX, terminal."""
