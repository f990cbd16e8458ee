"""Conditions in a contract's SQL: parsed, type-checked, and evaluated on batches and single rows."""
