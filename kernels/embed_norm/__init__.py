"""Embeddings of tokens, positions and types, summed and normed: what an encoder begins with."""
