"""What is known about classifiers besides their graph: preprocessing, class names, and the demo's model and photo.

`preprocess` reads specifications and photos, `labels` reads class names, `demo` locates the embedded example, which
`efficientnet_lite` builds from the weights that `torch_checkpoint` reads. Nothing here imports a runtime or a
framework, and reading photos does not import onnx.
"""
