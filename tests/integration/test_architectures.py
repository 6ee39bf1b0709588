"""Models of every architecture from a folder to the store and back: sentence-transformers' vectors, runs, searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

import lodestream
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from lodestream.errors import ConfigError, ModelError
from tests.support.tiny_configs import Form
from tests.support.tiny_models import NAMES
from tests.support.tiny_sentence_models import SENTENCE_FORMS, TEXTS, write_sentence_model
from tests.support.workspace import Workspace, assert_equal_stores, last_json, short_topics

STATES = Path(__file__).parents[1] / "support" / "architectures"


def open_featurizer(folder: Path, name: str, form: Form = "published", **options: Any) -> Featurizer:
    write_sentence_model(folder, name, form)
    return Featurizer(FeaturizerOptions(model=str(folder), precision="fp32", **options))


def document_vector(featurizer: Featurizer, text: str) -> NDArray[np.float32]:
    codes = featurizer.featurize(text, text_format="text").column("codes")[0].values.to_numpy().astype(np.float32)
    return np.asarray(codes / np.linalg.norm(codes), np.float32)


@pytest.mark.parametrize("form", ["published", "renamed"])
@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, name: str, form: Form) -> None:
    featurizer = open_featurizer(tmp_path, name, form)
    with np.load(STATES / f"{name}.npz") as file:
        wanted = {"documents": file["documents"], "queries": file["queries"]}
    found = {
        "documents": np.stack([document_vector(featurizer, text) for text in TEXTS]),
        "queries": np.stack([featurizer.embed(text) for text in TEXTS]),
    }
    for role, vectors in found.items():
        assert vectors.shape == wanted[role].shape == (len(TEXTS), featurizer.model.dim)
        # What two roundings to int8 leave of a vector, of leaves and of the whole.
        assert float((vectors * wanted[role]).sum(1).min()) >= 0.9995, role
    # A prompt changes vectors: the texts would pass for the wrong role otherwise.
    if SENTENCE_FORMS[name].prompts:
        assert float((wanted["documents"] * wanted["queries"]).sum(1).max()) < 0.99


@pytest.mark.parametrize("name", NAMES)
def test_levels_follow_from_pooling(tmp_path: Path, name: str) -> None:
    """Means have sentences; of a vector for the whole segment, the paragraphs of one segment have the same."""
    featurizer = open_featurizer(tmp_path, name, target_tokens=10_000, base_below=0.0)
    rows = featurizer.featurize("Ore here.\n\nA lode. It flows.", text_format="text")
    levels = rows.column("granularity").to_pylist()
    paragraphs = rows.filter(pc.equal(rows.column("granularity"), "paragraph"))
    first, second = paragraphs.column("codes").to_pylist()
    if SENTENCE_FORMS[name].pooling == "mean":
        assert levels.count("sentence") == 3 and first != second
    else:
        assert "sentence" not in levels and first == second


@pytest.mark.parametrize("name", NAMES)
def test_incremental_equals_rebuilt(tmp_path: Path, name: str) -> None:
    write_sentence_model(tmp_path / "model", name, "renamed")
    settings = (f"encoder.model={tmp_path / 'model'}", "encoder.precision=fp32")
    documents = {file: text[:1500] for file, text in short_topics(4).items()}
    workspace = Workspace.create(tmp_path / "kept", documents, *settings)
    workspace.run()
    edited, gone, *_ = documents
    documents[edited] = documents[edited].replace(". ", ". Changed here. ", 1)
    del documents[gone]
    workspace.write(edited, documents[edited])
    (workspace.docs / gone).unlink()
    report = workspace.run()
    assert 0 < report.counts.segments_encoded < report.counts.segments_total
    rebuilt = Workspace.create(tmp_path / "rebuilt", documents, *settings)
    rebuilt.run()
    assert_equal_stores(workspace.open_snapshot(), rebuilt.open_snapshot(), without=("uri",))


@pytest.mark.parametrize("name", ["qwen3", "gemma"])
def test_command_line(tmp_path: Path, name: str) -> None:
    """Last-token pooling, and linears after a mean, as a user runs them."""
    write_sentence_model(tmp_path / "model", name, "published", num_shards=2)
    workspace = Workspace.create(tmp_path / "work", short_topics(3))
    model = ("--set", f"encoder.model={tmp_path / 'model'}")
    done = workspace.command("run", *model, "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["documents"]["new"] == 3
    # A reader finds the model by the store.
    done = workspace.command("search", "how are names resolved", "--limit", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 2


def test_reader_wants_the_weights_that_made_the_features(tmp_path: Path) -> None:
    write_sentence_model(tmp_path / "model", "nomic", "published")
    settings = (f"encoder.model={tmp_path / 'model'}", "encoder.precision=fp32")
    workspace = Workspace.create(tmp_path / "work", {"a.md": "Ore, not gravel."}, *settings)
    workspace.run()
    library = lodestream.open(workspace.root)
    assert library.search("gravel", limit=1)
    write_sentence_model(tmp_path / "model", "nomic", "renamed")
    with pytest.raises(ModelError, match="expected"):
        lodestream.open(workspace.root).search("gravel")


def test_prompt_without_room_is_refused(tmp_path: Path) -> None:
    featurizer = open_featurizer(tmp_path, "gemma", max_tokens=48)
    with pytest.raises(ConfigError, match=r"no room behind the model's prompt of 20"):
        featurizer.featurize("Ore.")


def test_what_vectors_depend_on_is_in_the_version(tmp_path: Path) -> None:
    """config.json, pooling and the prompt of documents; not the prompt of queries."""
    versions = {}
    for change in ("none", "eps", "pooling", "document", "query"):
        featurizer = open_featurizer(tmp_path / change, "nomic")
        changes = {
            "eps": ("config.json", '"layer_norm_epsilon": 1e-12', '"layer_norm_epsilon": 1e-06'),
            "pooling": ("1_Pooling/config.json", '_mean_tokens": true', '_mean_tokens": false, "pooling_mode": "cls"'),
            "document": ("config_sentence_transformers.json", "search_document", "document"),
            "query": ("config_sentence_transformers.json", "search_query", "query"),
        }
        if change in changes:
            file, old, new = changes[change]
            path = tmp_path / change / file
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        recipe = {key: value for key, value in featurizer.recipe.items() if "model" not in key}
        versions[change] = repr(sorted(recipe.items()))
    assert versions["none"] == versions["query"]
    assert len(set(versions.values())) == 4


def test_check_says_what_goes_before_a_text(tmp_path: Path) -> None:
    write_sentence_model(tmp_path / "model", "nomic", "published")
    workspace = Workspace.create(tmp_path / "work", {"a.md": "Ore."})
    answer = json.loads(workspace.command("check", "--json", "--set", f"encoder.model={tmp_path / 'model'}").stdout)
    (model,) = (item for item in answer["checks"] if item["name"] == "model")
    assert ', before documents "search_document: ", before queries "search_query: ";' in model["detail"]
