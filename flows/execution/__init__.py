"""Local runs, dry runs and reproduction."""
