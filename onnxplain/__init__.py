"""Explain the classifier that you deploy: input gradients and attributions of ONNX models, without their framework."""
