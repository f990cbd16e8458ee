"""Stage 1: rows from any source."""
