"""Latency, energy, MACs, FLOPs and CPU features."""
