"""Stage 2: rows that keep the contract."""
