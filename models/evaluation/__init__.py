"""Metrics with intervals, calibration, drift tests and gates."""
