"""Architectures of encoders: what a model folder's config.json describes, and what its tensors are called."""
