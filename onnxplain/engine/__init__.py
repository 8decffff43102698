"""Gradient model and images in, attributions and scores out. Knows nothing of frameworks or of differentiation."""
