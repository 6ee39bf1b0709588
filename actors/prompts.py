"""What some models want before a text, as tokens: one prompt before documents, another before queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.actors.segment import MIN_MAX_TOKENS, SegmentOptions
from lodestream.actors.texts import Role
from lodestream.actors.tokenize import Tokenizer
from lodestream.errors import ConfigError
from lodestream.kernels.weights import ModelFolder

_WORD: Final = "word"


def tokenize_prompts(model: ModelFolder, tokenizer: Tokenizer) -> dict[Role, NDArray[np.int32]]:
    """int32 tokens of each prompt, which is tokenised apart from the text behind it.

    Where the next word would have carried the space at the prompt's end, that space is left out.
    """
    prompts: dict[Role, str] = {"document": model.document_prompt, "query": model.query_prompt}
    return {role: _tokenize_prompt(prompt, tokenizer) for role, prompt in prompts.items()}


def _tokenize_prompt(prompt: str, tokenizer: Tokenizer) -> NDArray[np.int32]:
    own, word, together, bare = tokenizer.tokenize([prompt, _WORD, prompt + _WORD, prompt.rstrip()])
    return own.ids if np.array_equal(np.concatenate([own.ids, word.ids]), together.ids) else bare.ids


def leave_room(options: SegmentOptions, num_prompt: int) -> SegmentOptions:
    """The options of segments that a prompt of ``num_prompt`` tokens goes before.

    Raises:
        ConfigError: there is no room for it.
    """
    if options.max_tokens - num_prompt < MIN_MAX_TOKENS:
        raise ConfigError(
            f"segments of {options.max_tokens} tokens leave no room behind the model's prompt of {num_prompt}",
            f"set segment.max_tokens to {MIN_MAX_TOKENS + num_prompt} or more",
        )
    return replace(options, max_tokens=options.max_tokens - num_prompt)
