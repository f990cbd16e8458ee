"""Launchers of distributed training: torchrun and Spark."""
