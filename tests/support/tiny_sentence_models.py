"""The tiny models as whole folders of sentence-transformers: a tokenizer of bytes, pooling, linears after it, prompts.

Known without lodestream and without sentence-transformers, so that both may be held to the same folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from tests.support.tiny_configs import DIM, Form
from tests.support.tiny_models import write_model

_MODULES: Final = "sentence_transformers.models."
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"

TEXTS: Final = (
    "Ore, not gravel.",
    "A lode is a rich vein. It keeps flowing!",
    "Wie man den Flöz wiederfindet",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceForm:
    """``template``: special tokens around a text. ``widths``: of what goes in and out of the linears after pooling."""

    pooling: Literal["mean", "cls", "lasttoken"]
    template: str = f"{_BOS} $A {_EOS}"
    prompts: Mapping[str, str] = field(default_factory=dict)
    widths: tuple[int, ...] = ()


SENTENCE_FORMS: Final[Mapping[str, SentenceForm]] = {
    "bert": SentenceForm(pooling="mean"),
    "xlm-roberta": SentenceForm(pooling="cls"),
    "modernbert": SentenceForm(pooling="mean", prompts={"query": "seek: ", "document": "text: "}),
    "nomic": SentenceForm(pooling="mean", prompts={"query": "search_query: ", "document": "search_document: "}),
    "gte": SentenceForm(pooling="cls"),
    "qwen3": SentenceForm(pooling="lasttoken", template=f"$A {_EOS}", prompts={"query": "Instruct: find\nQuery:"}),
    "gemma": SentenceForm(
        pooling="mean",
        prompts={"query": "task: search | query: ", "document": "title: none | text: "},
        widths=(DIM, 40, 24),
    ),
}
"""As the best-known model of each architecture has it."""


def write_sentence_model(folder: Path, name: str, form: Form, *, num_shards: int = 1) -> None:
    """A whole folder: what ``write_model`` writes, a tokenizer, and sentence-transformers' files."""
    write_model(folder, name, form, num_shards=num_shards)
    own = SENTENCE_FORMS[name]
    _write_tokenizer(folder, own.template)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", f"{number}_Dense") for number in range(2, len(own.widths) + 1)]
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    _write(
        folder / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": path, "type": _MODULES + kind}
            for idx, (kind, path) in enumerate(modules)
        ],
    )
    keys = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
    pooling = {"word_embedding_dimension": DIM} | {key: mode == own.pooling for mode, key in keys.items()}
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 90, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": dict(own.prompts), "default_prompt_name": None})
    for number, (num_in, num_out) in enumerate(zip(own.widths, own.widths[1:], strict=False), 2):
        _write_dense(folder / f"{number}_Dense", num_in, num_out)


def _write_dense(folder: Path, num_in: int, num_out: int) -> None:
    _write(
        folder / "config.json",
        {
            "in_features": num_in,
            "out_features": num_out,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    weight = np.random.RandomState(num_out).standard_normal((num_out, num_in)) / np.sqrt(num_in)
    save_file({"linear.weight": weight.astype(np.float32)}, folder / "model.safetensors")


def _write_tokenizer(folder: Path, template: str) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [_PAD, "<unk>", _BOS, _EOS, "<mask>", *alphabet]
    vocab = {word: index for index, word in enumerate(words)}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], unk_token=None))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.add_special_tokens([_PAD, "<unk>", _BOS, _EOS, "<mask>"])
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(_BOS, vocab[_BOS]), (_EOS, vocab[_EOS])]
    )
    engine.save(str(folder / "tokenizer.json"))
    special = {"pad_token": _PAD, "bos_token": _BOS, "eos_token": _EOS, "cls_token": _BOS, "sep_token": _EOS}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
