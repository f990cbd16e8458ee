"""The stored bytes of an ONNX file: packing, coding, sizes."""
