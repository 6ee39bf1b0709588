"""Long segments from end to end: dense and sparse side by side, the gate, and what the run says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts, FeaturizerOptions
from lodestream.actors.prepared import spans_from_table
from lodestream.errors import FeatureVersionMismatch
from lodestream.kernels import weights
from lodestream.kernels.attention.gate import GateTable
from lodestream.pipeline import session
from lodestream.pipeline.plan import make_plan
from tests.support.long_model import NUM_LAYERS, write_long_bert
from tests.support.workspace import Workspace, run_command

MAX_TOKENS = 3000
SETTINGS = (
    f"segment.max_tokens={MAX_TOKENS}",
    f"segment.target_tokens={MAX_TOKENS}",
    "segment.over_headings=true",
    "encoder.precision=fp32",
)
OPEN = GateTable(engine="torch-cpu fp32", head_dim=32, points=((2048, 0.8),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_bert(tmp_path_factory.mktemp("models") / "long-bert")


def long_texts() -> dict[str, str]:
    """Two pages of more than MAX_TOKENS tokens and a short one."""
    names = sorted(topics, key=lambda name: len(topics[name]))
    return {f"{name}.rst": topics[name] for name in (names[-1], names[-2], names[20])}


def make_workspace(root: Path, model: Path, *settings: str) -> Workspace:
    return Workspace.create(root, long_texts(), *SETTINGS, f"encoder.model={model}", *settings)


def document_vectors(workspace: Workspace) -> dict[str, np.ndarray]:
    snapshot = workspace.open_snapshot()
    vectors = {}
    for name in long_texts():
        rows = snapshot.get_features(name, "document")
        codes = np.array(rows.column("codes")[0].as_py(), np.float32)
        vectors[name] = codes / np.linalg.norm(codes)
    return vectors


def test_sparse_and_dense_runs_agree_within_the_stated_error(model: Path, tmp_path: Path) -> None:
    dense = make_workspace(tmp_path / "dense", model, "encoder.attention=dense")
    sparse = make_workspace(tmp_path / "sparse", model, "encoder.attention=sparse", "encoder.quality=low")
    plain = dense.run().as_dict()["attention"]
    assert plain["tokens"]["sparse"] == 0 and plain["why_dense"] == "encoder.attention = dense"
    found = sparse.run().as_dict()["attention"]
    assert found["tokens"]["sparse"] > found["tokens"]["dense"] > 0
    assert found["why_dense"] is None and 0.2 < found["pairs_kept"] < 0.6
    assert len(found["error"]) == NUM_LAYERS
    assert all(0 < layer["mean"] <= 0.4 and layer["mean"] < layer["p99"] for layer in found["error"])
    expected, vectors = document_vectors(dense), document_vectors(sparse)
    short = min(long_texts(), key=lambda name: len(long_texts()[name]))
    assert np.array_equal(expected[short], vectors[short])
    for name in long_texts():
        assert float(expected[name] @ vectors[name]) > 0.99
    assert any(not np.array_equal(expected[name], vectors[name]) for name in long_texts())


def test_a_measured_gate_is_kept_with_the_feature_version(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lodestream.actors import gate_measurement

    calls: list[int] = []

    def measure(**asked: object) -> GateTable:
        calls.append(1)
        heads = {"num_heads": 2, "head_dim": 32}
        assert asked == {"engine": OPEN.engine, "precision": "fp32", **heads, "max_tokens": MAX_TOKENS}
        return OPEN

    monkeypatch.setattr(gate_measurement, "measure_gate", measure)
    workspace = make_workspace(tmp_path, model, "encoder.quality=low")
    assert make_plan(workspace.load()).featurizer.options.gate is None, "a dry run measures nothing"
    first = workspace.run()
    assert first.counts.tokens_sparse > 0
    recipe = workspace.open_snapshot().recipe
    assert GateTable.from_dict(recipe["attention"]["gate"]) == OPEN
    again = workspace.run()
    assert calls == [1] and again.snapshot_after == first.snapshot_after
    # Another quality is another feature version, which is never mixed with this one.
    with pytest.raises(FeatureVersionMismatch, match=r"served: encoder\.quality low -> medium\n"):
        workspace.run("encoder.quality=medium")
    # What reads the store encodes as it was encoded.
    options = session.options_of_recipe(workspace.open_snapshot().recipe)
    assert (options.attention, options.quality, options.gate) == ("auto", "low", OPEN)


def test_the_gate_of_the_store_costs_no_second_look_at_the_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path, model)
    options = replace(session.read_options(workspace.load()), gate=OPEN)
    recipe = Featurizer(options).recipe
    hashed: list[str] = []
    hash_file = weights._hash_file
    monkeypatch.setattr(weights, "_hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    featurizer = session.make_featurizer(workspace.load(), recipe)
    assert featurizer.options == options and featurizer.recipe == recipe
    assert hashed == ["model.safetensors"]


def prepare(featurizer: Featurizer, texts: dict[str, str]) -> pa.Table:
    columns = {"doc_id": list(texts), "source": [""] * len(texts), "uri": list(texts), "text": list(texts.values())}
    columns |= {"source_version": [""] * len(texts), "text_format": ["rst"] * len(texts)}
    hashes = pa.array([bytes(32)] * len(texts), pa.binary(32))
    return featurizer.prepare(pa.table({**columns, "content_hash": hashes}))


def test_a_segment_has_the_same_codes_whatever_is_encoded_with_it(model: Path) -> None:
    options = FeaturizerOptions(
        model=str(model),
        max_tokens=MAX_TOKENS,
        target_tokens=MAX_TOKENS,
        over_headings=True,
        precision="fp32",
        gate=OPEN,
        quality="low",
    )
    featurizer, texts = Featurizer(options), long_texts()
    counts = EncodeCounts()
    together = featurizer.encode_segments(list(spans_from_table(prepare(featurizer, texts))), {}, counts)
    assert counts.tokens_sparse > 0
    alone: dict[bytes, np.ndarray] = {}
    for name, text in reversed(texts.items()):
        spans = list(spans_from_table(prepare(featurizer, {name: text})))
        alone |= {f: leaves.codes for f, leaves in featurizer.encode_segments(spans, {}, EncodeCounts()).items()}
    assert alone.keys() == together.keys()
    assert all(np.array_equal(alone[f], together[f].codes) for f in alone)


def test_command_line_says_what_was_sparse(model: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"encoder.model={model}", "encoder.attention=sparse", "run.executor=local"]
    workspace = Workspace.create(tmp_path, long_texts())
    flags = [argument for setting in settings for argument in ("--set", setting)]
    done = run_command(workspace.root, "run", *flags)
    assert done.returncode == 0, done.stderr
    assert "% sparse)" in done.stdout
    assert "attention: " in done.stderr and "measured error 0." in done.stderr and "quality high" in done.stderr
    status = run_command(workspace.root, "status", *flags)
    assert "% sparse (quality high, " in status.stdout
    shown = json.loads(run_command(workspace.root, "status", "--json", *flags).stdout)
    assert shown["recipe"]["attention"]["mode"] == "sparse"
    assert shown["last_run"]["attention"]["tokens"]["sparse"] > 0
    wrong = run_command(workspace.root, "run", "--set", "encoder.quality=best")
    assert wrong.returncode == 2 and "encoder.quality" in wrong.stderr and "'high'" in wrong.stderr


def test_the_default_model_says_why_nothing_is_sparse(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, {"a.md": "# A\n\nA sentence that says something of its own.\n"})
    report = workspace.run()
    found = report.as_dict()["attention"]
    assert found["tokens"] == {"dense": report.counts.tokens_encoded, "sparse": 0}
    assert found["why_dense"] == "segments have at most 256 tokens, and sparse attention begins at 2048"
    assert "attention" not in workspace.open_snapshot().recipe
