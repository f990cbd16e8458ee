"""Exporters from PyTorch to ONNX and LiteRT."""
