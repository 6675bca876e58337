"""The report of a grid: one HTML page that holds all of it, Markdown, LaTeX tables, and the figures as files.

`gather` reads the store once; everything after it takes values and returns values. This package is loaded by the one
command that needs it: it brings Matplotlib and Jinja2 with it.
"""
