"""A table of PostgreSQL through whole refreshes: late rows come in, and no error at the source deletes a feature."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from lodestream.errors import MassDeletionRefused, SourceContract, SourceUnavailable
from lodestream.pipeline import refresh
from lodestream.pipeline.config.settings import LoadedConfig, load_config
from lodestream.storage.store import FeatureStore
from tests.support.postgres import make_table, stored, write
from tests.support.servers import Server


def load(folder: Path, url: str) -> LoadedConfig:
    settings = {
        "kind": "postgres",
        "url": url,
        "table": "docs",
        "text_column": "body",
        "xid_column": "change_xid",
        "sweep_every": "1ms",
    }
    overrides = [f"sources.pg.{name}={value}" for name, value in settings.items()]
    return load_config(start=folder, overrides=[*overrides, "run.executor=local"], environ={})


def published(folder: Path) -> dict[str, str]:
    snapshot = FeatureStore.open(str(folder / ".lodestream")).open_snapshot()
    documents = (snapshot.get_document(doc_id) for doc_id in snapshot.document_states().column("doc_id").to_pylist())
    return {document["doc_id"]: document["text"] for document in documents if document is not None}


def test_a_late_row_is_published_and_an_unchanged_table_encodes_nothing(tmp_path: Path, postgres_url: str) -> None:
    make_table(postgres_url, 20)
    loaded = load(tmp_path, postgres_url)
    refresh.run(loaded)
    assert published(tmp_path) == stored(postgres_url)
    with psycopg.connect(postgres_url) as slow:
        slow.execute("INSERT INTO docs (id, body) VALUES (100, 'A row that is late.')")
        slow.execute("DELETE FROM docs WHERE id = 3")
        write(postgres_url, "UPDATE docs SET body = 'A row that is early.' WHERE id = 5")
        report = refresh.run(loaded)
        assert "100" not in published(tmp_path) and "3" in published(tmp_path)
        assert report.sources["pg"]["mode"] == "xid"
    refresh.run(loaded)
    assert published(tmp_path) == stored(postgres_url)
    before = FeatureStore.open(str(tmp_path / ".lodestream")).open_snapshot().sequence
    again = refresh.run(loaded)
    assert again.snapshot_after == before and again.counts.segments_encoded == 0


def test_no_error_at_the_source_deletes_a_feature(tmp_path: Path, postgres_server: Server, postgres_url: str) -> None:
    make_table(postgres_url, 20)
    loaded = load(tmp_path, postgres_url)
    refresh.run(loaded)
    wanted = published(tmp_path)

    write(postgres_url, "CREATE TABLE aside AS TABLE docs", "TRUNCATE docs")
    with pytest.raises(MassDeletionRefused):
        refresh.run(loaded)
    write(postgres_url, "INSERT INTO docs TABLE aside")
    refresh.run(loaded)
    assert published(tmp_path) == wanted

    write(postgres_url, "ALTER TABLE docs RENAME body TO content")
    with pytest.raises(SourceContract, match="no column body; it has change_xid, content"):
        refresh.run(loaded)
    write(postgres_url, "ALTER TABLE docs RENAME content TO body", "ALTER TABLE docs RENAME TO elsewhere")
    with pytest.raises(SourceContract, match="there is no table docs"):
        refresh.run(loaded)
    write(postgres_url, "ALTER TABLE elsewhere RENAME TO docs")
    postgres_server.stop()
    try:
        with pytest.raises(SourceUnavailable, match="Connection refused"):
            refresh.run(loaded)
    finally:
        postgres_server.start()
    assert published(tmp_path) == wanted
    report = refresh.run(loaded)
    assert published(tmp_path) == wanted and report.counts.segments_encoded == 0
