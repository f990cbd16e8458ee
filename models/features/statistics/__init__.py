"""Statistics that merge in any order."""
