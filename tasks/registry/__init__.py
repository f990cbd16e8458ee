"""Registered versions, champion, approvals and retention."""
