"""Makes tests/support/architectures/*.npz: the token states that transformers gives for the tiny models of
tests/support/tiny_models.py, and the vectors that sentence-transformers gives for those of tiny_sentence_models.py.
Run with the Python of an environment that has both (the project's own has not), from the root of the repository:

    python -m venv /tmp/st && /tmp/st/bin/pip install torch==2.13.0 'sentence-transformers==6.*'
    PYTHONPATH=. /tmp/st/bin/python tests/bench/make_architecture_states.py
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from tests.support.tiny_configs import CONFIGS, Form
from tests.support.tiny_models import LENGTHS, NAMES, draw_token_ids, write_model
from tests.support.tiny_sentence_models import TEXTS, write_sentence_model

FOLDER = Path(__file__).parents[1] / "support" / "architectures"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made_with = {name: metadata.version(name) for name in ("sentence-transformers", "transformers", "torch")}
    for name in NAMES:
        states = encode(name, "renamed")
        # The tensors as published have to mean the same to transformers itself.
        for mine, other in zip(states, encode(name, "published"), strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            states=np.concatenate(states),
            made_with=json.dumps(made_with),
            **embed(name),
        )
        print(f"{name}: {sum(LENGTHS)} states in {FOLDER}")


def encode(name: str, form: Form) -> list[NDArray[np.float32]]:
    """The states of the segments, each encoded on its own."""
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), name, form)
        if name in ("nomic", "gte"):
            # transformers knows the published keys of these from code beside the weights only.
            (Path(scratch) / "config.json").write_text(json.dumps(CONFIGS[name]["renamed"]))
        model, report = AutoModel.from_pretrained(
            scratch, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not {key for key in report["missing_keys"] if not key.startswith("pooler.")}, report
    assert not report["mismatched_keys"], report
    with torch.inference_mode():
        ids = [torch.from_numpy(draw_token_ids(length)).long()[None] for length in LENGTHS]
        return [model.eval()(input_ids=i).last_hidden_state[0].numpy() for i in ids]


def embed(name: str) -> dict[str, NDArray[np.float32]]:
    """The unit vectors of sentence-transformers: of TEXTS as documents, and as queries."""
    with tempfile.TemporaryDirectory() as scratch:
        write_sentence_model(Path(scratch), name, "renamed")
        model = SentenceTransformer(scratch, device="cpu", local_files_only=True)
        texts = list(TEXTS)
        return {"documents": model.encode_document(texts), "queries": model.encode_query(texts)}


if __name__ == "__main__":
    main()
