"""Stage 4: a trained network."""
