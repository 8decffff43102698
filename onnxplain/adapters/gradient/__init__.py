"""Reverse-mode differentiation, ONNX to ONNX.

prepare ──► sweep (rules: formulas over expr) ──► differentiate      any outputs, any inputs
 facts       control, ml, body                └──► gradient_model     a classifier: image, head, batch, objectives
"""
