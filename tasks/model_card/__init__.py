"""The model card of a version."""
