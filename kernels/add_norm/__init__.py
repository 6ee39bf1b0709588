"""A branch added to the residual stream, and the norm of the sum: what lies between the parts of an encoder layer."""
