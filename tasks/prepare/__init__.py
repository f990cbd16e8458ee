"""Stage 3: splits and encoded features."""
