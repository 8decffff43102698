"""Reverse-mode differentiation, ONNX to ONNX.

prepare ──► sweep (rules: formulas over expr) ──► differentiate      any outputs, any inputs
                                             └──► gradient_model     a classifier, its objectives, its preprocessing
"""
