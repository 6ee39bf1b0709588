"""Density: how much a paragraph says, from its text alone.

Prose and informative documentation score high; navigation lists, licences, logs, changelogs, tables of numbers and
badge lists score low. The score is a service level, not a measure of truth: what lies below ``BASE_BELOW`` gets no
sentence rows.

Three kinds of evidence, each a ratio of integer counts:

    background   how usual the text's character shapes and its words, word pairs and triples are in prose and in filler
    make-up      share of letters, ends of sentences, length of words, capitalised words, share of addresses
    repetition   word pairs and characters that come back, lines that begin alike (rows of tables, lines of logs)

and one frozen logistic model over them. Letters of all scripts are one class to the shapes, and words that the
background does not know count for nothing, so that a text is not low for being in another language.

C characters of a batch of P texts, W words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestream.actors.density_background import (
    CLASSES,
    COLON,
    IDEOGRAPH,
    LOWER,
    NEWLINE,
    NUM_CODES,
    PAD,
    QUOTE,
    SPACE,
    STOP,
    SYMBOL,
    UPPER,
    VALUE_UNIT,
    Background,
    load_background,
    look_up,
)

BASE_BELOW: Final = 0.2
"""Careful default of ``density.base_below``: see docs/density.md for the shares of prose and of filler below it."""

CODE_VERSION: Final = 1
"""Raised when this file changes a score."""

MAX_CHARS: Final = 1 << 17
"""Of a longer text the first MAX_CHARS decide, which bounds memory."""

_BATCH_CHARS: Final = 1 << 16
_PAD_CHARS: Final = 4
_SEPARATOR: Final = "\n" * _PAD_CHARS


def _build_powers(factor: int) -> NDArray[np.uint32]:
    """uint32 [C]: factor ** i modulo 2 ** 32."""
    powers = np.full(MAX_CHARS + _BATCH_CHARS + 64, factor, np.uint32)
    powers[0] = 1
    return np.multiply.accumulate(powers, dtype=np.uint32)


_IS_LETTER: Final = np.isin(np.arange(16), (LOWER, UPPER, IDEOGRAPH))
_WORD_KIND: Final = np.array([{LOWER: 1, UPPER: 1, IDEOGRAPH: 2}.get(c, 0) for c in range(16)], np.uint8)
# An ideograph is a letter like any other to the shapes; otherwise a script would decide.
_SHAPE_CLASS: Final = np.array([LOWER if c == IDEOGRAPH else c for c in range(16)], np.uint8)
_IS_PLAIN: Final = np.isin(np.arange(16), (LOWER, UPPER, SPACE, NEWLINE, IDEOGRAPH))
_HASH_FACTOR: Final = 0x01000193
_POWERS: Final = _build_powers(_HASH_FACTOR)
_INVERSE_POWERS: Final = _build_powers(pow(_HASH_FACTOR, -1, 1 << 32))
_PAIR_FACTORS: Final = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D))
_START_RUNS: Final = 3
_SLASH_CODE: Final = ord("/")
# Beyond ASCII every character ends an address: scripts without spaces go on with the sentence right behind it.
_ENDS_LINK: Final = np.array([c >= 128 or chr(c) in " \t\n\r)>]\"'`|" for c in range(256)])

SIGNALS: Final = (
    "shape",
    "words_prose",
    "words_filler",
    "novelty",
    "sentence_ends",
    "word_length",
    "titles",
    "links",
    "repeated_pairs",
    "repeated_starts",
    "repeated_characters",
    "letters",
)
"""Names of the signals, in the order of measure_signals."""


class Batch:
    """The characters of some texts end to end, with what several signals need of them.

    Each text ends in a newline and PAD: no window of up to _PAD_CHARS characters sees two texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        heads = [text[:MAX_CHARS] for text in texts]
        lengths = np.array([len(head) for head in heads], np.int64)
        sizes = lengths + _PAD_CHARS
        self.num_texts = len(texts)
        self.lengths = lengths
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes
        self.codes = _read_codes(_SEPARATOR.join(heads) + _SEPARATOR)
        classes = CLASSES.take(self.codes, mode="clip")
        _mark_beyond(self.codes, classes)
        # The separator's first newline stays, as the end of the text's last line.
        for offset in range(1, _PAD_CHARS):
            classes[self.ends - offset] = PAD
        self.classes = classes
        self.text_of = np.repeat(np.arange(self.num_texts, dtype=np.int64), sizes)
        self.num_link_chars = self._cut_out_links()
        self.counts = np.bincount(self.text_of * 16 + classes, minlength=16 * self.num_texts).reshape(-1, 16)
        """int64 [P, 16]: characters by class."""

    def _cut_out_links(self) -> NDArray[np.int64]:
        """int64 [P]: characters of addresses. They become PAD: prose with links is still prose."""
        colons = np.flatnonzero(self.classes == COLON)
        codes = self.codes
        colons = colons[(codes.take(colons + 1) == _SLASH_CODE) & (codes.take(colons + 2) == _SLASH_CODE)]
        if not len(colons):
            return np.zeros(self.num_texts, np.int64)
        is_end = _ENDS_LINK.take(codes, mode="clip") | (self.classes == NEWLINE)
        ends = np.flatnonzero(is_end)
        edges = np.zeros(len(codes) + 1, np.int32)
        np.add.at(edges, colons, 1)
        np.add.at(edges, ends[np.searchsorted(ends, colons)], -1)
        inside = np.flatnonzero(np.cumsum(edges[:-1]))
        self.classes[inside] = PAD
        return self.count_by_text(inside)

    def sum_over(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """int64 [P]: sums of a value per character."""
        return np.add.reduceat(values, self.starts, dtype=np.int64)

    def count_by_text(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [P]: how many of the characters at ``positions`` each text has."""
        return np.bincount(self.text_of.take(positions), minlength=self.num_texts)


def _read_codes(joined: str) -> NDArray[Any]:
    if joined.isascii():
        return np.frombuffer(joined.encode("ascii"), np.uint8)
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _mark_beyond(codes: NDArray[Any], classes: NDArray[np.uint8]) -> None:
    """Classes beyond the first plane: CJK extensions are ideographs, pictures are symbols, other scripts letters."""
    if codes.dtype == np.uint8:
        return
    beyond = np.flatnonzero(codes >= NUM_CODES)
    if len(beyond):
        high = codes.take(beyond)
        classes[beyond] = np.where(high >= 0x20000, IDEOGRAPH, np.where(high >= 0x1F000, SYMBOL, LOWER))


class Words:
    """The words of a batch: maximal runs of letters; each ideograph is one.

    Attributes:
        starts: int64 [W], positions in the batch.
        texts: int64 [W], the text that each is in.
        singles, pairs, triples: uint32 hashes [W], [W'], [W'']; pairs and triples lie within one text.
        pair_texts: int64 [W'].
    """

    def __init__(self, batch: Batch) -> None:
        kinds = _WORD_KIND.take(batch.classes)
        breaks = (kinds[1:] != kinds[:-1]) | (kinds[1:] == 2)
        starts = np.flatnonzero(breaks & (kinds[1:] > 0)) + 1
        if kinds[0]:
            starts = np.concatenate([np.zeros(1, np.int64), starts])
        ends = np.flatnonzero(breaks & (kinds[:-1] > 0)) + 1
        lower = batch.codes.astype(np.uint32)
        lower += (batch.classes == UPPER) * (lower < 128) * np.uint32(32)
        lower *= kinds > 0
        lower *= _POWERS[: len(lower)]
        totals = np.zeros(len(lower) + 1, np.uint32)
        np.cumsum(lower, out=totals[1:], dtype=np.uint32)
        self.singles = (totals.take(ends) - totals.take(starts)) * _INVERSE_POWERS.take(starts)
        self.starts = starts
        self.texts = batch.text_of.take(starts)
        h, t = self.singles, self.texts
        chained = h[:-1] * _PAIR_FACTORS[0] + h[1:] * _PAIR_FACTORS[1]
        same = t[:-1] == t[1:]
        self.pairs, self.pair_texts = chained[same], t[:-1][same]
        triples = (chained[:-1] + np.uint32(1)) * _PAIR_FACTORS[0] + h[2:] * _PAIR_FACTORS[2]
        same = t[:-2] == t[2:]
        self.triples, self.triple_texts = triples[same], t[:-2][same]


def measure_signals(batch: Batch, background: Background) -> NDArray[np.float64]:
    """float64 [P, len(SIGNALS)]: the signals of each text, each a function of that text and the background alone.

    Numerics:
        Sums are of integers, and what follows is addition, multiplication and division of float64: bits do not depend
        on the machine, on the order of the texts or on their neighbours.
    """
    words = Words(batch)
    num_words = np.bincount(words.texts, minlength=batch.num_texts)
    num_ideographs, num_lines = batch.counts[:, IDEOGRAPH], batch.counts[:, NEWLINE]
    num_letters = batch.counts[:, LOWER] + batch.counts[:, UPPER] + num_ideographs
    num_inked = batch.counts[:, 1:].sum(axis=1) - batch.counts[:, SPACE] - num_lines
    num_read = batch.lengths - batch.num_link_chars
    num_titles = batch.count_by_text(words.starts[batch.classes.take(words.starts) == UPPER])
    shapes = batch.sum_over(background.shapes.take(shape_windows(batch))) / VALUE_UNIT
    prose, filler, num_novel, num_pairs = _weigh_words(words, background, batch.num_texts)
    # The constants are what a text of no length starts from: the shorter it is, the less is held for or against it.
    columns = {
        "shape": shapes / (num_read + 32.0),
        "words_prose": prose / (num_words + 8.0),
        "words_filler": filler / (num_words + 8.0),
        "novelty": (num_novel + 4.0) / (num_pairs + 8.0) - 0.5,
        "sentence_ends": np.minimum(_count_sentence_ends(batch) * 60.0 / (num_letters + 60.0), 1.0),
        "word_length": np.minimum((num_letters - num_ideographs + 20.0) / (num_words - num_ideographs + 4.0), 8.0),
        "titles": np.maximum(num_titles / (num_words + 4.0) - 0.4, 0.0),
        "links": batch.num_link_chars / (batch.lengths + 16.0),
        "repeated_pairs": _count_repeats(words.pairs, words.pair_texts, batch.num_texts) / (num_pairs + 8.0),
        "repeated_starts": _count_repeated_starts(batch) / (num_lines + 2.0),
        "repeated_characters": _count_repeated_characters(batch) / (num_read + 32.0),
        "letters": np.minimum((num_letters + 8.0) / (num_inked + 8.0) - 0.4, 0.0),
    }
    return np.stack([columns[name] for name in SIGNALS], axis=1)


def shape_windows(batch: Batch) -> NDArray[np.uint16]:
    """uint16 [C]: four bits for the class of each character and of the three after it; PAD is 0."""
    folded = _SHAPE_CLASS.take(batch.classes).astype(np.uint16)
    pairs = (folded[:-1] << np.uint16(4)) | folded[1:]
    windows = np.zeros(len(folded), np.uint16)
    # The last three windows of the batch reach beyond its end; they begin in PAD and count for nothing.
    windows[:-3] = (pairs[:-2] << np.uint16(8)) | pairs[2:]
    return windows


def _weigh_words(
    words: Words, background: Background, num_texts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Per text: summed log-odds of what speaks for prose, of what speaks for filler, unknown word pairs, word pairs."""
    prose, filler = np.zeros(num_texts), np.zeros(num_texts)
    for hashes, texts in ((words.singles, words.texts), (words.triples, words.triple_texts)):
        _, values = look_up(background.words, hashes)
        _add_evidence(prose, filler, values, texts)
    known, values = look_up(background.words, words.pairs)
    _add_evidence(prose, filler, values, words.pair_texts)
    num_pairs = np.bincount(words.pair_texts, minlength=num_texts)
    num_novel = np.bincount(words.pair_texts[~known], minlength=num_texts)
    return prose / VALUE_UNIT, filler / VALUE_UNIT, num_novel, num_pairs


def _add_evidence(
    prose: NDArray[np.float64], filler: NDArray[np.float64], values: NDArray[np.int8], texts: NDArray[np.int64]
) -> None:
    # Sums of small integers in float64 are exact, whatever their order.
    prose += np.bincount(texts, np.maximum(values, 0), minlength=len(prose))
    filler += np.bincount(texts, np.minimum(values, 0), minlength=len(filler))


def _count_sentence_ends(batch: Batch) -> NDArray[np.int64]:
    """int64 [P]: stops after a letter or quote and before white space, or full-width stops, which need none."""
    classes = batch.classes
    stops = np.flatnonzero(classes[:-1] == STOP)
    before, after = classes.take(np.maximum(stops - 1, 0)), classes.take(stops + 1)
    spaced = (_IS_LETTER.take(before) | (before == QUOTE)) & ((after == SPACE) | (after == NEWLINE) | (after == QUOTE))
    wide = batch.codes.take(stops) >= 0x3000
    return batch.count_by_text(stops[spaced | wide])


def _count_repeated_starts(batch: Batch) -> NDArray[np.int64]:
    """int64 [P]: lines after the first that begin with the same runs of equal class as another before them.

    Beginnings of nothing but words are not counted: wrapped prose is made of them. The rest come back in rows of a
    table, lines of a log and entries of a list.
    """
    classes = batch.classes
    begins = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(classes[1:] != classes[:-1]) + 1])
    runs, texts = _SHAPE_CLASS.take(classes.take(begins)), batch.text_of.take(begins)
    first = np.flatnonzero(runs[: max(len(runs) - _START_RUNS, 0)] == NEWLINE)
    first = first[texts.take(first) == texts.take(first + _START_RUNS)]
    starts, marked = np.zeros(len(first), np.uint32), np.zeros(len(first), np.bool_)
    for offset in range(1, _START_RUNS + 1):
        classes_there = runs.take(first + offset)
        starts = (starts << np.uint32(4)) | classes_there
        marked |= ~_IS_PLAIN.take(classes_there)
    return _count_repeats(starts[marked], texts.take(first[marked]), batch.num_texts)


def _count_repeated_characters(batch: Batch) -> NDArray[np.int64]:
    """int64 [P]: characters other than white space that stand behind their like: rules, leaders, monotony."""
    same = np.flatnonzero(batch.codes[1:] == batch.codes[:-1]) + 1
    classes = batch.classes.take(same)
    return batch.count_by_text(same[(classes != PAD) & (classes != SPACE) & (classes != NEWLINE)])


def _count_repeats(hashes: NDArray[np.uint32], texts: NDArray[np.int64], num_texts: int) -> NDArray[np.int64]:
    """int64 [P]: how many of a text's hashes stood in it before."""
    keys = (texts.astype(np.uint64) << np.uint64(32)) | hashes
    keys.sort()
    repeated = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
    return np.bincount(repeated.astype(np.int64), minlength=num_texts)


class DensityModel:
    """Scores paragraphs. Frozen, so safe to share between threads; pickles by value.

    A score depends on the text and on the model alone: the same in any batch, process or machine.

    >>> low, high = DensityModel.default().score(["| 1.0 | 2.0 |", "The lock is held until the file is closed."])
    >>> bool(low < high)
    True
    """

    def __init__(self, background: Background) -> None:
        self.background = background
        self.identity = _identify(background)
        """Hex hash of tables, weights and code version: belongs to the feature version."""

    @classmethod
    def default(cls) -> DensityModel:
        """The model that comes with this version."""
        return cls(load_background())

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The density of each text.

        Args:
            texts: P paragraphs. Of a longer one than MAX_CHARS characters the beginning decides.

        Returns:
            float32 [P] in [0, 1], whole thousandths. An empty text or one without ink scores 0.

        Numerics:
            Equal bits everywhere: integers, then float64 additions, multiplications and divisions, then the nearest
            thousandth, so that a last bit of the logistic function cannot show.

        Cost:
            Linear in the characters; memory bounded by a batch of about 200,000 characters.
        """
        parts = [self._score_batch(texts[start:end]) for start, end in plan_batches(texts)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _score_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        batch = Batch(texts)
        signals = measure_signals(batch, self.background)
        logits = np.full(len(texts), self.background.weights["bias"])
        for column, name in enumerate(SIGNALS):
            logits += self.background.weights[name] * signals[:, column]
        thousandths = np.searchsorted(_THRESHOLDS, logits, side="right")
        thousandths[batch.lengths + 1 == batch.counts[:, SPACE] + batch.counts[:, NEWLINE]] = 0
        return (thousandths / 1000.0).astype(np.float32)


# logistic(x) rounded to thousandths is the number of thresholds at or below x.
_THRESHOLDS: Final = np.array([math.log(p / (1.0 - p)) for p in ((i + 0.5) / 1000.0 for i in range(1000))])


def _identify(background: Background) -> str:
    name = f"density {CODE_VERSION} {background.digest}"
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def plan_batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Half-open runs of texts of about _BATCH_CHARS characters: what fits a processor's cache."""
    start, size = 0, 0
    for position, text in enumerate(texts):
        size += min(len(text), MAX_CHARS) + _PAD_CHARS
        if size >= _BATCH_CHARS:
            yield start, position + 1
            start, size = position + 1, 0
    if start < len(texts):
        yield start, len(texts)
