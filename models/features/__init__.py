"""Feature encoding: from raw rows to numbers."""
