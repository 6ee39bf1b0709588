"""The encoder on a CPU: packed segments in, token states out."""

from lodestream.kernels.encoder.api import Encoder, load_encoder
from lodestream.kernels.encoder.identity import EncoderIdentity

__all__ = ["Encoder", "EncoderIdentity", "load_encoder"]
