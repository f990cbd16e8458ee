"""Trained networks that come as ONNX files."""
