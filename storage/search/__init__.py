"""Nearest spans of a snapshot, exact over the stored codes: by a scan, or from blocks of codes held in memory."""
