"""Every kernel on the GPU of this machine: its results against float64, its time against the best dense form."""
