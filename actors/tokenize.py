"""Text to token ids with character offsets, by the tokenizer that belongs to a model.

A thin layer over the ``tokenizers`` package with three guarantees that the package's own files do not give: nothing is
truncated or padded (a model folder's ``tokenizer.json`` often asks for both), offsets count characters of the text that
was passed in and never decrease, and a token's span does not start at the space before its word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lodestream.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

DEFINITION_NAME: Final = "tokenizer.json"

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_SPACES: Final = np.array([ord(space) for space in " \t\n\r"], np.uint32)

GROUP_CHARS: Final = 1 << 20
"""Characters handed to the tokenizer at once: its own record of a text is many times larger than the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of one text, without special tokens.

    ``ids``          int32 [T]
    ``char_starts``  int32 [T], never decreasing
    ``char_ends``    int32 [T], half-open end of each token in characters of the text
    """

    ids: Int32Array
    char_starts: Int32Array
    char_ends: Int32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """The tokens of many texts, end to end.

    ``offsets`` int64 [N+1]: text n has tokens ``offsets[n]:offsets[n + 1]``; the other fields are as in ``Tokens``,
    with character offsets that count from the start of each text.
    """

    ids: Int32Array
    char_starts: Int32Array
    char_ends: Int32Array
    offsets: Int64Array


class Tokenizer:
    """The tokenizer of one model folder.

    Thread-safe: nothing is changed after construction. May be pickled. While texts are tokenised, other Python threads
    run. Text that spells a special token (``[SEP]``) becomes that token, as it does in sentence-transformers.

        tokenizer = Tokenizer.from_folder(Path("model"))
        tokenizer.tokenize(["Ore, not gravel."])[0].ids
    """

    identity: str
    """sha256 (hex) of the content of ``tokenizer.json``."""
    prefix_ids: Int32Array
    """Special tokens that the model expects before a text, int32."""
    suffix_ids: Int32Array
    """Special tokens that the model expects after a text, int32."""

    def __init__(self, definition: str) -> None:
        """Builds it from the content of a ``tokenizer.json``.

        Raises:
            ModelError: the content is no tokenizer.
        """
        self._load(definition)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads ``tokenizer.json`` of a model folder.

        Raises:
            ModelError: the file is missing, unreadable or no tokenizer.
        """
        definition = _read_definition(folder)
        try:
            return cls(definition)
        except ModelError as error:
            raise ModelError(f"{folder / DEFINITION_NAME}: {error.message}", error.hint) from None

    def _load(self, definition: str) -> None:
        import tokenizers

        try:
            engine = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the package raises bare Exception for whatever its parser dislikes
            raise ModelError(f"not a tokenizer: {error}", "install the model again") from None
        engine.no_truncation()
        engine.no_padding()
        self._definition = definition
        self._engine = engine
        self.identity = _hash_definition(definition)
        self.prefix_ids, self.suffix_ids = _probe_special_tokens(engine)

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self._definition}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._load(state["definition"])

    @property
    def num_special_tokens(self) -> int:
        """Tokens that the model adds around every text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text: no special tokens, no truncation, no padding.

        Args:
            texts: any strings; lone surrogates are read as U+FFFD.

        Returns:
            One ``Tokens`` per text, in order.

        Cost:
            About 1.5 us a token on one core.
        """
        batch = self.tokenize_batch(texts)
        bounds = batch.offsets.tolist()
        return [
            Tokens(ids=batch.ids[a:b], char_starts=batch.char_starts[a:b], char_ends=batch.char_ends[a:b])
            for a, b in pairwise(bounds)
        ]

    def tokenize_batch(self, texts: Sequence[str]) -> TokenBatch:
        """As ``tokenize``, with the tokens of all texts in one set of arrays."""
        parts = [self._encode_group(group) for group in group_texts(texts, GROUP_CHARS)]
        counts = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int64)
        ids, spans = (
            (np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts]))
            if parts
            else (np.zeros(0, np.int32), np.zeros((0, 2), np.int32))
        )
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return TokenBatch(
            ids=ids,
            char_starts=np.ascontiguousarray(spans[:, 0]),
            char_ends=np.ascontiguousarray(spans[:, 1]),
            offsets=offsets,
        )

    def _encode_group(self, texts: list[str]) -> tuple[Int64Array, Int32Array, Int32Array]:
        """Token counts [N] int64, ids [T] int32 and spans [T, 2] int32 of a few texts."""
        try:
            encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # a lone surrogate cannot pass; the stand-in has the same length
            texts = [_LONE_SURROGATE.sub("\ufffd", text) for text in texts]
            encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        total = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, total)
        pairs = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        spans = np.fromiter(pairs, np.int32, 2 * total).reshape(total, 2)
        _tidy_spans(texts, spans, counts)
        return counts, ids, spans


def identify_tokenizer(folder: Path) -> str:
    """``Tokenizer.identity`` of a model folder, without building the tokenizer.

    Raises:
        ModelError: the file is missing or unreadable.
    """
    return _hash_definition(_read_definition(folder))


def _read_definition(folder: Path) -> str:
    path = folder / DEFINITION_NAME
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"no {DEFINITION_NAME} in the model folder {folder}",
            f"point encoder.model at a folder that holds {DEFINITION_NAME} next to config.json and model.safetensors",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}", "make the file readable, or install the model again") from None


def _hash_definition(definition: str) -> str:
    return hashlib.sha256(definition.encode("utf-8")).hexdigest()


def _tidy_spans(texts: list[str], spans: Int32Array, counts: Int64Array) -> None:
    """Makes starts non-decreasing within each text, and moves them past the space that a token carries."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    base = np.repeat(np.cumsum(lengths) - lengths, counts)
    points = np.frombuffer("".join((*texts, "\0")).encode("utf-32-le"), np.uint32)
    is_space = np.isin(points, _SPACES)
    while (carries := (spans[:, 1] - spans[:, 0] > 1) & is_space[spans[:, 0] + base]).any():
        spans[:, 0] += carries
    absolute = spans[:, 0] + base
    running = np.maximum.accumulate(absolute)
    if not np.array_equal(running, absolute):
        spans[:, 0] = running - base
        np.maximum(spans[:, 1], spans[:, 0], out=spans[:, 1])


def group_texts(texts: Sequence[str], max_chars: int) -> Iterator[list[str]]:
    """Runs of texts of at most ``max_chars`` characters, and longer texts alone; a text counts one more than it has, so
    that empty ones end a run too."""
    group: list[str] = []
    num_chars = 0
    for text in texts:
        if group and num_chars + len(text) > max_chars:
            yield group
            group, num_chars = [], 0
        group.append(text)
        num_chars += len(text) + 1
    if group:
        yield group


def _probe_special_tokens(engine: tokenizers.Tokenizer) -> tuple[Int32Array, Int32Array]:
    """Special tokens before and after a text, found by tokenising one with and without them."""
    for probe in ("a", "word", "1"):
        bare = engine.encode(probe, add_special_tokens=False).ids
        full = engine.encode(probe, add_special_tokens=True).ids
        for at in range(len(full) - len(bare) + 1) if bare else ():
            if full[at : at + len(bare)] == bare:
                return np.array(full[:at], np.int32), np.array(full[at + len(bare) :], np.int32)
    raise ModelError(
        "the tokenizer turns plain letters into no tokens, or changes them when it adds special tokens",
        "use the tokenizer.json that was made for the model",
    )
