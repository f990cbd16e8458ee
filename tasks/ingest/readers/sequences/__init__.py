"""Rows with arrays of arrays: a file for each sequence, and values that are nested."""
