"""Pretrained checkpoints: found by their reference, checked, and described."""
