"""The recipe file: read and checked."""
