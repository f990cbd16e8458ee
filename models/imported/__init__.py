"""Networks that come trained, as ONNX files, from Keras or elsewhere."""
