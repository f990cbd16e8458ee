"""ONNX Runtime sessions, and what their outputs mean."""
