"""The encoder: packed segments in, token states out.

Segments lie end to end without padding; linears run over all tokens of a batch at once, attention inside each segment.

T packed tokens, R rows (T filled up), C model dim, H query heads, J key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lodestream.kernels.architectures.description import EncoderDescription
from lodestream.kernels.architectures.registry import ARCHITECTURES
from lodestream.kernels.embed_norm.api import embed_norm
from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.encoder.block import Block, read_attention, read_mlp
from lodestream.kernels.encoder.block_attention import BlockAttention
from lodestream.kernels.encoder.head import PoolingHead
from lodestream.kernels.encoder.identity import EncoderIdentity
from lodestream.kernels.encoder.tensors import ModelTensors
from lodestream.kernels.fused_forms import send
from lodestream.kernels.linear import MANY_ROWS, plan_rows
from lodestream.kernels.norm import Norm
from lodestream.kernels.packing import PackedBatch
from lodestream.kernels.precision import ENGINE, STATES_VERSION, Precision
from lodestream.kernels.rope.table import make_rotary_table
from lodestream.kernels.segment_attention import Attend, DenseAttention
from lodestream.kernels.weights import ModelFolder, load_tensors


class PackedEncoder:
    """An encoder of any supported architecture, run from its description.

    Guarantees: the states of a segment are the same bits whatever shares its batch. Thread-safe (no state but the
    weights); torch's own threads do the work.

    Numerics: fp32 keeps all in float32. bf16 rounds the inputs of every linear and of attention to bfloat16, and keeps
    sums, norms and the residual stream in float32: cosine to fp32 above .9999.

    On a GPU the fused operators serve. No GPU has run it yet: whether its products give a row the same bits in every
    batch is what ``kernels.gpu_check --model`` finds out.
    """

    def __init__(self, model: ModelFolder, *, precision: Precision, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.description = model.description
        self.dim = model.description.dim
        self.max_tokens = model.max_positions
        self.max_seq_length = model.max_seq_length
        self.pooling = model.pooling
        self.head: Callable[[torch.Tensor], torch.Tensor] | None = PoolingHead(model) if model.heads else None
        self.identity = EncoderIdentity(
            weights_sha256=model.weights_sha256,
            architecture=model.architecture,
            precision=precision,
            engine=ENGINE if self._device.type == "cpu" else f"torch-{self._device.type}",
            states_version=STATES_VERSION,
        )
        # Linears that are not packed fill few rows up to many, each for itself, unless that was done once for all.
        self._least_rows = 1 if self._device.type == "cpu" else MANY_ROWS
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        tensors = ModelTensors(model.path, load_tensors(model), ARCHITECTURES[model.architecture], device=device)
        self._tables = _read_tables(tensors, self.description)
        self._first_norm, self._blocks = _read_blocks(tensors, self.description, self._dtype, self._device)
        tensors.close()

    def encode(self, batch: PackedBatch, *, attend: Attend | None = None) -> torch.Tensor:
        """float32 [T, C] on the encoder's device: the states of all tokens.

        Args:
            batch: the segments.
            attend: attention of the layers, for the rows that ``linear.plan_rows`` gives; dense where None.

        Raises:
            ValueError: a segment has more than ``max_tokens`` tokens, or a token id is outside the vocabulary.
        """
        lengths = torch.diff(batch.cu_seqlens).tolist()
        self._check(batch, lengths)
        num_rows = plan_rows(max(batch.num_tokens, self._least_rows))
        with torch.inference_mode():
            if attend is None:
                attend = self._plan_attention(lengths, num_rows)
            token_ids_T, positions_T = (send(part, self._device) for part in (batch.token_ids_T, batch.positions_T))
            branch_RC, stream_RC = self._embed(token_ids_T, positions_T, num_rows)
            positions_R = F.pad(positions_T, (0, num_rows - batch.num_tokens))
            last = len(self._blocks) - 1
            for index, block in enumerate(self._blocks):
                dtype = torch.float32 if index == last else self._dtype
                branch_RC, stream_RC = block(branch_RC, stream_RC, positions_R, attend, dtype=dtype)
        return branch_RC[: batch.num_tokens]

    def _plan_attention(self, lengths: list[int], num_rows: int) -> Attend:
        if self._device.type == "cpu":
            return DenseAttention(lengths, num_rows=num_rows, dtype=self._dtype)
        return BlockAttention(lengths, num_rows=num_rows)

    def _embed(
        self, token_ids_T: torch.Tensor, positions_T: torch.Tensor, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        d = self.description
        return embed_norm(
            token_ids_T,
            self._tables,
            self._first_norm,
            positions_T=None if d.first_position is None else positions_T,
            stream="normed" if d.has_embedding_norm else "sum",
            dtype=self._dtype,
            num_rows=num_rows,
        )

    def _check(self, batch: PackedBatch, lengths: list[int]) -> None:
        if max(lengths) > self.max_tokens:
            raise ValueError(f"a segment of {max(lengths)} tokens, but the model reads {self.max_tokens} at most")
        vocab_size = self.description.vocab_size
        if int(batch.token_ids_T.min()) < 0 or int(batch.token_ids_T.max()) >= vocab_size:
            raise ValueError(f"a token id outside the model's vocabulary of {vocab_size}")


def _read_tables(tensors: ModelTensors, d: EncoderDescription) -> EmbeddingTables:
    words_VC = tensors.take("embeddings.words.weight", d.vocab_size, d.dim)
    types_UC = tensors.take("embeddings.types.weight", d.num_types, d.dim).float() if d.num_types else None
    if d.first_position is None:
        return EmbeddingTables(words_VC=words_VC, types_UC=types_UC, scale=d.embedding_scale)
    positions_PC = tensors.take("embeddings.positions.weight", d.num_positions, d.dim).float()
    # Every text is of type 0: its row is part of each position's.
    if types_UC is not None:
        positions_PC = positions_PC + types_UC[0]
    return EmbeddingTables(
        words_VC=words_VC, positions_PC=positions_PC, scale=d.embedding_scale, first_position=d.first_position
    )


def _read_blocks(
    tensors: ModelTensors, d: EncoderDescription, dtype: torch.dtype, device: torch.device
) -> tuple[Norm, list[Block]]:
    """The norm of the embeddings, or of the first block where that comes next, and the blocks."""
    tables = {
        kind: make_rotary_table(
            theta=kind.theta, factor=kind.factor, head_dim=d.head_dim, num_positions=d.max_tokens, device=device
        )
        for kind in {layer.rotary for layer in d.layers}
        if kind is not None
    }

    def read_norm(name: str) -> Norm:
        return tensors.norm(name, d.dim, d.norm)

    attention_norms = [
        read_norm(f"layers.{index}.attention_norm") if layer.has_attention_norm else None
        for index, layer in enumerate(d.layers)
    ]
    mlp_norms: list[Norm | None] = [read_norm(f"layers.{index}.mlp_norm") for index in range(len(d.layers))]
    after_attention, after_mlp = attention_norms, mlp_norms
    if d.norm_place != "after":
        # The norm before a part is the norm of the sum that the part before it ends with.
        after_attention, after_mlp = mlp_norms, [*attention_norms[1:], read_norm("final_norm")]
    first = read_norm("embeddings.norm") if d.has_embedding_norm else attention_norms[0]
    blocks = []
    for index, layer in enumerate(d.layers):
        names = [f"layers.{index}.{part}_update_norm" for part in ("attention", "mlp")]
        update_norms = [read_norm(name) if d.norm_place == "around" else None for name in names]
        rotary = None if layer.rotary is None else tables[layer.rotary]
        blocks.append(
            Block(
                attention=read_attention(tensors, d, index, rotary=rotary, dtype=dtype),
                attention_update_norm=update_norms[0],
                after_attention=_require(after_attention[index]),
                mlp=read_mlp(tensors, d, index, dtype=dtype, joins_halves=device.type != "cpu"),
                mlp_update_norm=update_norms[1],
                after_mlp=_require(after_mlp[index]),
                stream="normed" if d.norm_place == "after" else "sum",
            )
        )
    return _require(first), blocks


def _require(norm: Norm | None) -> Norm:
    assert norm is not None, "only the first layer may go without a norm before attention, behind one of the embeddings"
    return norm
