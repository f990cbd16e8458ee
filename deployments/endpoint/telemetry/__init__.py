"""Metrics, prediction log and outcome log."""
