"""Rotary positions of queries and keys, with the norm that some models put before."""
