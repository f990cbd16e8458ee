"""Quantization: post-training, quantization-aware, weight-only."""
