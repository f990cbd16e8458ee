"""The outside world: one file per stage, and what the stages share to read, write, track and start things."""
