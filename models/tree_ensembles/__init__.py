"""Gradient-boosted trees: fitted by scikit-learn, served as ONNX."""
