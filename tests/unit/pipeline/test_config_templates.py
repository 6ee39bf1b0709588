"""The first configuration of each kind of source: it loads, and names the place that was given."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import get_args

import pytest

from lodestream.pipeline.config.settings import list_settings, load_config, write_initial_config
from lodestream.pipeline.config.sources import SOURCE_KINDS
from lodestream.pipeline.config.templates import Template
from lodestream.pipeline.sources.catalog import open_sources
from tests.support.workspace import run_command

TEMPLATES = get_args(Template)


def test_every_kind_has_a_template() -> None:
    assert set(TEMPLATES) == set(SOURCE_KINDS)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("place", [None, 's3://a "b\\c'])
def test_a_template_loads_as_it_is_and_with_every_line_switched_on(
    tmp_path: Path, template: Template, place: str | None
) -> None:
    write_initial_config(tmp_path, source_path=place, template=template)
    file = tmp_path / "lodestream.toml"
    loaded = load_config(start=tmp_path, environ={})
    source = loaded.config.sources["docs"]
    assert source.kind == template
    assert place is None or place in source.model_dump().values()
    section, mark, rest = file.read_text().partition("\n[store]")
    head, header, body = section.partition("[sources.docs]")
    file.write_text(head + header + body.replace("\n# ", "\n") + mark + rest)
    assert load_config(start=tmp_path, environ={}).config == loaded.config, "commented lines show the defaults"


def test_sources_open_without_looking(tmp_path: Path) -> None:
    for template in TEMPLATES:
        (tmp_path / template).mkdir()
        write_initial_config(tmp_path / template, source_path=None, template=template)
        sources = open_sources(load_config(start=tmp_path / template, environ={}))
        assert sources.keys() == {"docs"}
        assert pickle.loads(pickle.dumps(sources["docs"].reader())) == sources["docs"].reader()


def test_init_writes_a_template_and_check_says_what_is_missing(tmp_path: Path) -> None:
    done = run_command(tmp_path, "init", "nowhere.db", "--template", "sqlite")
    assert done.returncode == 0, done.stderr
    done = run_command(tmp_path, "run")
    assert done.returncode == 1 and "nowhere.db does not exist" in done.stderr


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    url = "postgresql://reader:secret@db/app?password=secret"
    write_initial_config(tmp_path, source_path=url, template="postgres")
    loaded = load_config(start=tmp_path, overrides=["lease.url=redis://:secret@host/0"], environ={})
    shown = {name: value for name, value, _ in list_settings(loaded)}
    assert shown["sources.docs.url"] == "postgresql://reader:***@db/app?password=***"
    assert "secret" not in str(shown)
    assert loaded.config.sources["docs"].model_dump()["url"] == url
