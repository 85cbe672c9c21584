"""Tables and pages as data, and their forms: Markdown, CSV, LaTeX, HTML, the screen."""
