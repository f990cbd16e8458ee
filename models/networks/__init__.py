"""Networks by kind, each in one file, built from a frozen config."""
