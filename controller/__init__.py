"""Turns a grid of experiments into runs and their results into a table."""
