"""Responses, errors and limits."""
