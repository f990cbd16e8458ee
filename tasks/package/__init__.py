"""Stage 7: a bento of the chosen candidate."""
