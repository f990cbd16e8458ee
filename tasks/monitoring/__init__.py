"""A version's requests, compared with its reference profile."""
