"""Scores, slices, held-out rows and plots."""
