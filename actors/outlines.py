"""Documents cut into outlines, where one that cannot be cut does not hold up the others."""

from __future__ import annotations

from collections.abc import Sequence

from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.segment import Outline, SegmentOptions, outline_documents
from lodestream.actors.tokenize import Tokenizer
from lodestream.errors import DocumentError


def outline_texts(
    texts: Sequence[str | None],
    formats: Sequence[TextFormat | None],
    tokenizer: Tokenizer,
    options: SegmentOptions,
) -> tuple[list[Outline | None], list[str | None]]:
    """An outline per text, None where there is no text or it cannot be cut (then with the reason)."""
    outlines: list[Outline | None] = [None] * len(texts)
    reasons: list[str | None] = [None] * len(texts)
    work = {row: (text, formats[row] or "text") for row, text in enumerate(texts) if text is not None}
    try:
        cut = outline_documents(
            [text for text, _ in work.values()], [text_format for _, text_format in work.values()], tokenizer, options
        )
        for row, outline in zip(work, cut, strict=True):
            outlines[row] = outline
    except DocumentError:
        # One of them cannot be cut: find out which, so that only that one goes to quarantine.
        for row, (text, text_format) in work.items():
            try:
                outlines[row] = outline_documents([text], [text_format], tokenizer, options)[0]
            except DocumentError as error:
                reasons[row] = error.message
    return outlines, reasons
