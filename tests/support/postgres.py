"""Tables of documents in PostgreSQL, as the tests and benchmarks make them."""

from __future__ import annotations

from typing import Any

import psycopg

from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.sources.postgres import PostgresTable

TABLE = """
CREATE TABLE docs (
  id bigint PRIMARY KEY,
  body text,
  updated_at timestamptz NOT NULL DEFAULT now(),
  change_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX ON docs (updated_at);
CREATE INDEX ON docs (change_xid);
CREATE TABLE gone (
  id bigint,
  updated_at timestamptz NOT NULL DEFAULT now(),
  change_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN NEW.updated_at := now(); NEW.change_xid := pg_current_xact_id(); RETURN NEW; END$$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN INSERT INTO gone (id) VALUES (OLD.id); RETURN OLD; END$$;
CREATE TRIGGER bury BEFORE DELETE ON docs FOR EACH ROW EXECUTE FUNCTION bury();
"""

MODE_SETTINGS: dict[str, dict[str, Any]] = {
    "xid": {"xid_column": "change_xid", "tombstone_table": "gone"},
    "holdback": {"updated_column": "updated_at", "tombstone_table": "gone"},
    "lookback": {"updated_column": "updated_at", "tombstone_table": "gone"},
    "scan": {},
}


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection in autocommit."""
    return psycopg.connect(url, autocommit=True)


def make_table(url: str, rows: int = 0) -> None:
    """The table ``docs``, stamped and with tombstones in ``gone``, with ``rows`` rows."""
    with connect(url) as connection:
        connection.execute(TABLE.encode())
        connection.execute(
            "INSERT INTO docs (id, body) SELECT i, 'text of row ' || i FROM generate_series(1, %s) AS i", (rows,)
        )


def open_table(url: str, mode: str, *, name: str = "pg", prefix_ids: bool = False, **settings: Any) -> PostgresTable:
    """The table as a source in a mode; ``auto`` takes the settings of mode xid."""
    chosen = MODE_SETTINGS.get(mode, MODE_SETTINGS["xid"])
    values = {
        "kind": "postgres",
        "url": url,
        "table": "docs",
        "text_column": "body",
        "mode": mode,
        **chosen,
        **settings,
    }
    return PostgresTable(name, PostgresSource.model_validate(values), prefix_ids=prefix_ids)


def stored(url: str) -> dict[str, str]:
    """The texts of the table ``docs`` by id."""
    with connect(url) as connection:
        return {str(row_id): body for row_id, body in connection.execute("SELECT id, coalesce(body, '') FROM docs")}


def write(url: str, *statements: str) -> None:
    """Carries statements out, each on its own."""
    with connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
