"""Makes tests/support/reference_vectors.npz: sentence-transformers' vectors of paragraphs of Python's own texts.

    python tests/bench/make_reference_vectors.py --sentence-transformers /tmp/st/bin/python

How to make that environment is told in sentence_transformers_worker.py.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import numpy as np
from their_process import Theirs

from lodestream.actors.models import DEFAULT_MODEL, PACKAGED_MODELS, find_model
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.weights import read_model_folder
from tests.support.reference_vectors import REFERENCE_FILE, reference_paragraphs, write_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentence-transformers", metavar="PYTHON", required=True)
    arguments = parser.parse_args()
    folder, sha256 = find_model(DEFAULT_MODEL)
    model = read_model_folder(folder, expected_sha256=sha256)
    paragraphs = reference_paragraphs()
    tokens = Tokenizer.from_folder(folder).tokenize(list(paragraphs.values()))
    # Two special tokens; what is longer would be cut off.
    kept = [name for name, t in zip(paragraphs, tokens, strict=True) if len(t.ids) + 2 <= model.max_seq_length]
    theirs = Theirs(arguments.sentence_transformers, num_threads=2)
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "vectors.npy")
        texts = [paragraphs[name] for name in kept]
        theirs.encode(texts, setting="default", max_tokens=model.max_seq_length, out=out)
        vectors = np.load(out)
    theirs.close()
    made_with = {
        "model": PACKAGED_MODELS[DEFAULT_MODEL].requirement,
        "weights_sha256": model.weights_sha256,
        "python": platform.python_version(),
        **theirs.versions,
    }
    write_reference(dict(zip(kept, vectors, strict=True)), made_with)
    print(f"{len(kept)} vectors in {REFERENCE_FILE}, made with {made_with}")


if __name__ == "__main__":
    main()
