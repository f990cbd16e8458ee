"""Stage 5: smaller candidates, built and measured."""
