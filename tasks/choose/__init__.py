"""Stage 6: the best candidate within the budget."""
