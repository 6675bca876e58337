"""The report of a grid: one HTML page that holds all of it, Markdown, LaTeX tables, and the figures as files.

`gather`, `images` and `tested` read the store; `columns`, `files`, `page`, `story` and `text` take values and return
values, to which `.importlinter` holds them. This package is loaded by the one command that needs it: it brings
Matplotlib and Jinja2 with it.
"""
