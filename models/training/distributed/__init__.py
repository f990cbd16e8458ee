"""Data, tensor and pipeline parallelism."""
