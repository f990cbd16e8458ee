"""Frozen documents, their digests, durations, and atomic files."""
