"""Activations of an MLP with its bias: GELU, GeGLU, SwiGLU."""
