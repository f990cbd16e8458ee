"""Networks by kind, built from a frozen config."""
