"""Span pooling: token states of a packed batch -> unit vectors of spans as int8 codes, scale and norm."""
