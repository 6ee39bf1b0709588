"""The layered cache of the read path: process memory, then a local disk, in front of the snapshot."""
