"""The outside world: one folder for each stage, and what stages share."""
