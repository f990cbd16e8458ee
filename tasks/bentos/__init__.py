"""Bentos on disk, served, smoke-tested, and as a container context."""
