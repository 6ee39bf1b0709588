"""What one request may ask for, and what becomes of one that asks for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lodestream.errors import RequestTooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """See pipeline/config/serve.py for each."""

    request_timeout_s: float = 30.0
    max_requests: int = 256
    batch_tokens: int = 1024
    max_queued_tokens: int = 131_072
    max_body_bytes: int = 4 << 20
    max_ids: int = 1000
    max_texts: int = 256
    max_text_tokens: int = 8192
    max_tokens: int = 65_536

    def check_ids(self, ids: Sequence[str]) -> None:
        """Raises RequestTooLarge for too many ids."""
        if len(ids) > self.max_ids:
            raise RequestTooLarge(
                f"{len(ids)} ids in one request, {self.max_ids} are allowed", "ask in several requests (serve.max_ids)"
            )

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raises RequestTooLarge for too many texts."""
        if len(texts) > self.max_texts:
            raise RequestTooLarge(
                f"{len(texts)} texts in one request, {self.max_texts} are allowed",
                "send them in several requests (serve.max_texts)",
            )

    def check_tokens(self, num_tokens: Sequence[int]) -> None:
        """Raises RequestTooLarge for a text, or texts, of too many tokens."""
        longest = max(num_tokens, default=0)
        if longest > self.max_text_tokens:
            raise RequestTooLarge(
                f"text {list(num_tokens).index(longest)} has {longest} tokens, {self.max_text_tokens} are allowed",
                "cut it into several texts (serve.max_text_tokens)",
            )
        if sum(num_tokens) > self.max_tokens:
            raise RequestTooLarge(
                f"the texts have {sum(num_tokens)} tokens, {self.max_tokens} are allowed in one request",
                "send them in several requests (serve.max_tokens)",
            )
