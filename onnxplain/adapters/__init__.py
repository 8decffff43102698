"""Any classifier in, an ONNX gradient model out."""
