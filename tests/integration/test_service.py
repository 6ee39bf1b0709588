"""The endpoint's core over a real store: what is stored, what is encoded, and which snapshot answers."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lodestream.actors.featurizer import Featurizer
from lodestream.errors import (
    NotFoundError,
    RequestInvalid,
    RequestTooLarge,
    StoreCorrupt,
    StoreUnreachable,
)
from lodestream.pipeline.serve.models import (
    DensityRequest,
    EmbeddingsRequest,
    EncodeRequest,
    FeaturesRequest,
    SearchRequest,
)
from lodestream.pipeline.serve.notes import Notes
from lodestream.pipeline.serve.service import Service
from lodestream.storage.pointer_reader import PointerReader
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.served import BROKEN, DOCUMENTS, serve, stage, wait_until
from tests.support.workspace import Workspace


def notes() -> Notes:
    return Notes(request_id="test")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.create(tmp_path_factory.mktemp("served"), DOCUMENTS)
    made.write("torn.md", BROKEN)
    made.run()
    return made


@pytest.fixture(scope="module")
def service(workspace: Workspace) -> Iterator[Service]:
    limits = ("max_ids=5", "max_texts=3", "max_text_tokens=50", "max_tokens=60")
    with serve(workspace, *(f"serve.{limit}" for limit in limits)) as started:
        yield started


def test_documents_come_in_the_order_asked_for(service: Service) -> None:
    request = FeaturesRequest(ids=["wool.md", "no such", "../wool.md", "wool.md"], granularities=["paragraph"])
    view, reads = asyncio.run(service.get_features(request, noted := notes()))
    assert [read.status for read in reads] == ["FOUND", "NOT_FOUND", "NOT_FOUND", "FOUND"]
    assert reads[0].stored is not None
    assert set(reads[0].stored.rows.column("granularity").to_pylist()) == {"paragraph"}
    assert reads[0].stored.rows.column("ordinal").to_pylist() == [0, 1, 2]
    assert noted.snapshot == view.record.sequence == 1
    assert noted.freshness_s is not None
    assert noted.freshness_s >= 0


def test_stored_rows_are_those_of_the_snapshot(workspace: Workspace, service: Service) -> None:
    _, reads = asyncio.run(service.get_features(FeaturesRequest(ids=["bread.md"]), notes()))
    assert reads[0].stored is not None
    assert reads[0].stored.rows.equals(workspace.open_snapshot().get_features("bread.md"))


def test_a_known_text_is_not_encoded(service: Service) -> None:
    request = EncodeRequest(texts=[DOCUMENTS["wool.md"], "Wholly unseen words."], text_format="markdown")
    _, encoded = asyncio.run(service.encode(request, notes()))
    assert encoded.num_encoded_tokens == encoded.num_tokens[1] < encoded.num_tokens[0]
    fresh = Featurizer(service.encoding.featurizer.options).featurize(DOCUMENTS["wool.md"])  # type: ignore[union-attr]
    assert encoded.rows[0].column("codes").equals(fresh.column("codes"))


def test_a_text_is_known_after_a_restart(workspace: Workspace, tmp_path: Path) -> None:
    request = EncodeRequest(texts=["# Looms\n\nWoven by night. Worn by day.\n\nSold at noon."], text_format="markdown")
    counted, codes = [], []
    for _ in range(2):
        with serve(workspace, f"cache.folder={tmp_path / 'cache'}") as service:
            _, encoded = asyncio.run(service.encode(request, notes()))
        counted.append((encoded.num_tokens[0], encoded.num_encoded_tokens))
        codes.append(encoded.rows[0])
    ((num_tokens, first), (again, second)) = counted
    assert num_tokens == again and first == num_tokens > 0 and second == 0
    assert codes[0].equals(codes[1]) and len(set(codes[0].column("granularity").to_pylist())) > 2


def test_search_finds_by_text_and_by_vector(service: Service) -> None:
    view, nearest = asyncio.run(service.search(SearchRequest(query="spinning wool of sheep", source="docs"), notes()))
    assert nearest.hits[0].doc_id == "wool.md"
    assert nearest.is_exact
    assert view.record.sequence == 1
    vector = service.encoding.featurizer.embed("spinning wool of sheep")  # type: ignore[union-attr]
    _, same = asyncio.run(service.search(SearchRequest(vector=(vector * 3).tolist()), notes()))
    assert same == nearest


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (SearchRequest(query="wool", source="elsewhere"), RequestInvalid),
        (SearchRequest(query="wool", snapshot=99), NotFoundError),
        (SearchRequest(query=" "), RequestInvalid),
        (SearchRequest(vector=[1.0, 2.0]), RequestInvalid),
        (SearchRequest(vector=[0.0] * 384), RequestInvalid),
        (SearchRequest(query="word " * 51), RequestTooLarge),
    ],
)
def test_what_cannot_be_searched_is_said(service: Service, request_: SearchRequest, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(service.search(request_, notes()))


def test_limits_hold(service: Service) -> None:
    with pytest.raises(RequestTooLarge, match="6 ids"):
        asyncio.run(service.get_features(FeaturesRequest(ids=["a"] * 6), notes()))
    with pytest.raises(RequestTooLarge, match="4 texts"):
        asyncio.run(service.encode(EncodeRequest(texts=["a"] * 4), notes()))
    with pytest.raises(RequestTooLarge, match="text 1 has 51 tokens"):
        asyncio.run(service.encode(EncodeRequest(texts=["a", "word " * 51]), notes()))
    with pytest.raises(RequestTooLarge, match="80 tokens"):
        asyncio.run(service.encode(EncodeRequest(texts=["word " * 40] * 2), notes()))


def test_embeddings_are_unit_vectors(service: Service) -> None:
    request = EmbeddingsRequest(input=["Bread and butter.", "Rockets!"], model="lodestream")
    _, vectors, encoded = asyncio.run(service.embed(request, notes()))
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[1], service.encoding.featurizer.embed("Rockets!"))  # type: ignore[union-attr]
    assert len(encoded.num_tokens) == 2


def test_density_of_texts_and_of_documents_agree(service: Service) -> None:
    texts = DensityRequest(texts=[DOCUMENTS["wool.md"]], text_format="markdown")
    _, threshold, (scored,) = asyncio.run(service.score(texts, notes()))
    _, _, (stored, missing) = asyncio.run(service.score(DensityRequest(ids=["wool.md", "none"]), notes()))
    assert threshold == pytest.approx(0.2)
    assert missing.status == "NOT_FOUND"
    assert len(scored.paragraphs) == 3
    for mine, theirs in zip(scored.paragraphs, stored.paragraphs, strict=True):
        assert mine.density == pytest.approx(theirs.density, abs=1e-3)
        assert mine.model_dump(exclude={"density", "token_count"}) == theirs.model_dump(
            exclude={"density", "token_count"}
        )


def test_a_publish_is_followed_and_the_old_snapshot_closed(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    with serve(workspace) as service:
        held = service.follower.enter()
        gone = weakref.ref(held.snapshot)
        workspace.write("new.md", "Something new under the sun.")
        workspace.run()
        wait_until(lambda: service.follower.latest.record.sequence == 2)  # type: ignore[union-attr]
        _, (read,) = asyncio.run(service.get_features(FeaturesRequest(ids=["new.md"]), noted := notes()))
        assert (read.status, noted.snapshot) == ("FOUND", 2)
        assert service.rows.get(held.snapshot, ["new.md"], ("document",)) == {}
        service.follower.leave(held)
        del held
        wait_until(lambda: gc.collect() >= 0 and gone() is None)
        _, (before,) = asyncio.run(service.get_features(FeaturesRequest(ids=["new.md"], snapshot=1), noted))
        assert (before.status, noted.snapshot) == ("NOT_FOUND", 1)


def test_an_unreachable_register_leaves_what_is_served(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(workspace) as service:

        def fail(place: object) -> None:
            raise StoreUnreachable("no answer", "look at the network")

        monkeypatch.setattr(PointerReader, "read", fail)
        wait_until(lambda: service.follower.trouble is not None)
        _, (read,) = asyncio.run(service.get_features(FeaturesRequest(ids=["wool.md"]), notes()))
        assert read.status == "FOUND"
        monkeypatch.undo()
        wait_until(lambda: service.follower.trouble is None)


def test_documents_in_quarantine_and_documents_to_come_are_told_apart(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    workspace.write("wool.md", BROKEN)
    workspace.write("never.md", BROKEN)
    workspace.run("run.max_quarantined_share=1")
    stage(FeatureStore.open(str(workspace.store)), ["coming.md"], version="staged", then_publish=False)
    with serve(workspace) as service:
        request = FeaturesRequest(ids=["wool.md", "never.md", "coming.md", "bread.md", "no.md"])
        _, reads = asyncio.run(service.get_features(request, notes()))
    assert [read.status for read in reads] == ["QUARANTINED", "QUARANTINED", "PENDING", "FOUND", "NOT_FOUND"]
    kept, never = reads[0].stored, reads[1].stored
    assert kept is not None and never is not None
    assert kept.quarantine_reason is not None and "not UTF-8" in kept.quarantine_reason
    assert (kept.rows.num_rows > 0, never.rows.num_rows) == (True, 0)


def test_a_snapshot_that_cannot_be_opened_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    with serve(workspace) as service:
        attempts: list[int] = []

        def fail(snapshot: Snapshot, *, before: Snapshot | None) -> None:
            attempts.append(snapshot.sequence)
            raise StoreCorrupt("a file is torn", "lodestream verify")

        monkeypatch.setattr(service.searcher, "prepare", fail)
        workspace.write("new.md", "Something new under the sun.")
        workspace.run()
        wait_until(lambda: service.follower.trouble is not None)
        time.sleep(0.6)  # a dozen looks at the pointer
        assert attempts == [2]
        assert service.follower.latest is not None
        assert service.follower.latest.record.sequence == 1
        _, (read,) = asyncio.run(service.get_features(FeaturesRequest(ids=["wool.md"]), notes()))
        assert read.status == "FOUND"
        monkeypatch.undo()
        wait_until(lambda: service.follower.latest.record.sequence == 2)  # type: ignore[union-attr]
        assert service.follower.trouble is None

        def panic(_: object) -> None:
            raise BaseException("panic")

        monkeypatch.setattr(PointerReader, "read", panic)
        wait_until(lambda: service.follower.trouble is not None)
        monkeypatch.undo()
        wait_until(lambda: service.follower.trouble is None)
    assert "the snapshot cannot be followed" in caplog.text
