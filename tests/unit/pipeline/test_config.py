"""The configuration: precedence, origins, and messages that name the place and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lodestream.errors import ConfigError
from lodestream.pipeline.config.layers import flatten, read_toml
from lodestream.pipeline.config.settings import (
    CONFIG_NAME,
    Config,
    LoadedConfig,
    find_config,
    list_settings,
    load_config,
    write_initial_config,
)
from lodestream.pipeline.config.sources import FilesSource

MINIMAL = '[sources.docs]\npath = "docs"\n'


def load(
    folder: Path, text: str = MINIMAL, overrides: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> LoadedConfig:
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return load_config(start=folder, overrides=overrides, environ=environ or {})


def refuse(folder: Path, text: str, *overrides: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, overrides, environ)
    assert caught.value.hint
    return caught.value


def at(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def test_file_is_found_in_a_parent(tmp_path: Path) -> None:
    load(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    loaded = load_config(start=below, environ={})
    assert loaded.file == tmp_path / CONFIG_NAME
    assert loaded.folder == tmp_path
    assert loaded.resolve("docs/../x") == tmp_path / "x"
    # Found elsewhere, the file is named in full.
    assert loaded.origins["sources.docs.path"] == f"{tmp_path / CONFIG_NAME}:2"


def test_nearest_file_wins(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    load(tmp_path)
    load(tmp_path / "a")
    assert find_config(tmp_path / "a") == tmp_path / "a" / CONFIG_NAME


def test_given_file_wins_over_the_search(tmp_path: Path) -> None:
    load(tmp_path)
    other = tmp_path / "x" / "other.toml"
    other.parent.mkdir()
    other.write_text('[sources.other]\npath = "."\n')
    loaded = load_config(start=tmp_path, file=other, environ={})
    assert set(loaded.config.sources) == {"other"}
    assert loaded.folder == other.parent


def test_without_a_file_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(start=tmp_path, environ={})
    assert "lodestream init" in caught.value.hint
    assert caught.value.exit_code == 2


def test_source_by_override_needs_no_file(tmp_path: Path) -> None:
    loaded = load_config(start=tmp_path, overrides=["sources.docs.path=."], environ={})
    assert loaded.file is None
    assert loaded.folder == tmp_path


def test_missing_given_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(start=tmp_path, file=tmp_path / "none.toml", environ={})


LAYERED = ("segment.max_tokens", "run.chunk_documents", "encoder.num_threads")
DEFAULTS = {path: at(Config(sources={"docs": FilesSource(path=".")}), path) for path in LAYERED}
values = st.dictionaries(st.sampled_from(LAYERED), st.integers(min_value=64, max_value=4096))


@given(in_file=values, in_environment=values, in_override=values)
def test_precedence(
    tmp_path_factory: pytest.TempPathFactory,
    in_file: dict[str, int],
    in_environment: dict[str, int],
    in_override: dict[str, int],
) -> None:
    lines = [f"{path} = {value}\n" for path, value in in_file.items()]
    loaded = load(
        tmp_path_factory.mktemp("config"),
        "".join(lines) + MINIMAL,
        tuple(f"{path}={value}" for path, value in in_override.items()),
        {"LODESTREAM__" + path.upper().replace(".", "__"): str(value) for path, value in in_environment.items()},
    )
    for path in LAYERED:
        layers = (in_override, in_environment, in_file, DEFAULTS)
        assert at(loaded.config, path) == next(layer[path] for layer in layers if path in layer)
    expected = dict.fromkeys(LAYERED, "default")
    expected |= {path: f"{CONFIG_NAME}:{line}" for line, path in enumerate(in_file, start=1)}
    expected |= {path: "LODESTREAM__" + path.upper().replace(".", "__") for path in in_environment}
    expected |= dict.fromkeys(in_override, "--set")
    assert {path: loaded.origins[path] for path in LAYERED} == expected


def test_every_setting_has_an_origin(tmp_path: Path) -> None:
    settings = list_settings(load(tmp_path, overrides=("run.chunk_bytes=3MiB",)))
    assert len({name for name, _, _ in settings}) == len(settings) > 20
    named = {path: (value, origin) for path, value, origin in settings}
    assert named["sources.docs.path"] == ("docs", f"{CONFIG_NAME}:2")
    assert named["run.chunk_bytes"] == ("3MiB", "--set")
    assert named["store.uri"] == (".lodestream", "default")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("segment.heading_prefix=true", True),
        ("segment.heading_prefix=False", False),
        ("density.base_below=0.3", 0.3),
        ("density.base_below=0", 0.0),
        ("encoder.precision=bf16", "bf16"),
        ("store.uri=123", "123"),
        ("store.uri=a=b", "a=b"),
        ("run.chunk_bytes=1.5KiB", 1536),
        ("run.chunk_bytes=10", 10),
        ("serve.text_bytes=0", 0),
        ("sources.docs.include=*.md, *.txt", ("*.md", "*.txt")),
        ('sources.docs.include=["a,b", "c"]', ("a,b", "c")),
        ("sources.docs.exclude=", ()),
        ("run.ray_address=", ""),
    ],
)
def test_text_becomes_the_type_that_is_wanted(tmp_path: Path, override: str, value: object) -> None:
    loaded = load(tmp_path, overrides=(override,))
    found = at(loaded.config, override.partition("=")[0])
    assert (type(found), found) == (type(value), value)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    loaded = load(tmp_path, MINIMAL + "[lease]\nurl = 'postgresql://me:secret@host/db'")
    shown = {name: value for name, value, _ in list_settings(loaded)}
    assert shown["lease.url"] == "postgresql://me:***@host/db" and loaded.config.lease.url.count("secret") == 1


def test_later_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("store.uri=a", "store.uri=b")).config.store.uri == "b"


def test_variable_names_a_source_with_a_hyphen(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[sources.my-docs]\npath = "x"\n', environ={"LODESTREAM__SOURCES__MY_DOCS__PATH": "y"})
    assert loaded.config.sources["my-docs"].path == "y"
    assert set(loaded.config.sources) == {"my-docs"}


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"LODESTREAM_STREAMS": "x", "PATH": "y"}).config == load(tmp_path).config


def test_process_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CONFIG_NAME).write_text(MINIMAL)
    monkeypatch.setenv("LODESTREAM__STORE__URI", "elsewhere")
    assert load_config(start=tmp_path).config.store.uri == "elsewhere"


def test_tree_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path).config
    with pytest.raises(ValidationError):
        config.segment.max_tokens = 3  # type: ignore[misc]


def test_lines_of_settings_over_several_lines() -> None:
    text = '# one\n[a]\nx = [\n  "[b]",  # four\n]\n\ny = """\n[c]\n"""\n[[d]]\nz.w = 1\n[d.e]\nv = 1\n'
    _, lines = read_toml(text, "f")
    named = {".".join(path): line for path, line in lines.items()}
    assert named == {"a": 2, "a.x": 3, "a.y": 7, "d": 10} | {name: line for name, line in named.items() if "d." in name}


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d"]),
        st.dictionaries(
            st.sampled_from(["x", "y", "z"]), st.tuples(st.integers(0, 3), st.lists(st.integers(), min_size=1))
        ),
    )
)
def test_lines_agree_with_where_things_were_written(sections: dict[str, dict[str, tuple[int, list[int]]]]) -> None:
    lines: list[str] = []
    written: dict[tuple[str, ...], int] = {}
    for section, settings in sections.items():
        lines.append(f"[{section}]")
        written[(section,)] = len(lines)
        for name, (num_blank_lines, numbers) in settings.items():
            lines.extend([""] * num_blank_lines)
            lines.append(f"{name} = [")
            written[(section, name)] = len(lines)
            lines.extend(f"  {number}," for number in numbers)
            lines.append("]")
    tree, found = read_toml("\n".join(lines), "f")
    assert found == written
    assert {path for path, _ in flatten(tree)} <= set(found)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x = ", ":1:"),
        ("[a]\nb = 1\n[c\n", ":3:"),
        ("a = 1\na = 2\n", ":2:"),
        ('a = 1\nb = """\nopen\n', ":3:"),
        ("a = 1\n\x00\n", ":2:"),
    ],
)
def test_no_toml(tmp_path: Path, text: str, place: str) -> None:
    error = refuse(tmp_path, text)
    assert error.message.startswith(f"{CONFIG_NAME}{place} not valid TOML")


def test_no_utf8(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(b'[sources.docs]\npath = "\xff"\n')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(start=tmp_path, environ={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment]\nmax_tokns = 1", "4: segment.max_tokns is not a setting; did you mean segment.max_tokens?"),
        ("[segmnt]\nmax_tokens = 1", "3: segmnt is not a setting; did you mean segment?"),
        ("[run]\nmax_tokens = 1", "4: run.max_tokens is not a setting; did you mean segment.max_tokens?"),
        ("[run]\nzzz = 1", "4: run.zzz is not a setting"),
        ("[sources.b]\npth = '.'\npath = '.'", "4: sources.b.pth is not a setting; did you mean sources.b.path?"),
        ("[run]\nchunk_documents = 'many'", "4: run.chunk_documents must be a whole number, not 'many'"),
        ("[run]\nchunk_documents = 2.5", "4: run.chunk_documents must be a whole number, not 2.5"),
        ("[run]\nchunk_documents = true", "4: run.chunk_documents must be a whole number, not true"),
        ("[run]\nchunk_documents = 0", "4: run.chunk_documents must be at least 1, not 0"),
        ("[run]\nchunk_bytes = 'big'", '4: run.chunk_bytes must be a size such as "16MiB" or "2GB", not \'big\''),
        ("[run]\nexecutor = 'rya'", "4: run.executor must be one of 'auto', 'local' or 'ray', not 'rya'"),
        ("[density]\nbase_below = 2", "4: density.base_below must be at most 1, not 2"),
        ("[density]\nbase_below = 'x'", "4: density.base_below must be a number, not 'x'"),
        ("[density]\nbase_below = nan", "4: density.base_below must be a finite number, not nan"),
        ("[segment]\nheading_prefix = 1", "4: segment.heading_prefix must be true or false, not 1"),
        ("[store]\nuri = 3", "4: store.uri must be text in quotes, not 3"),
        ("[store]\nuri = ''", "4: store.uri must not be empty"),
        ("[sources.b]\npath='x'\ninclude = 'x'", "5: sources.b.include must be a list of texts"),
        ("[sources.b]\npath='x'\ninclude = ['x', 1]", "5: sources.b.include[1] must be text in quotes, not 1"),
        ("[sources.b]\n", "3: sources.b.path is missing"),
        ("[sources.B]\npath = 'x'", "3: sources.B: a source's name"),
        ("[sources.b]\npath = 'x'\nkind = 'sql'", "5: sources.b.kind must be one of 'files', "),
        ("[lease]\nbackend = 'etcd'", "3: lease.url is missing: the address of the server for backend 'etcd'"),
        ("[lease]\nbackend='etcd'\nurl = 'redis://h'", "3: lease.url is one of backend 'redis', not 'etcd'"),
        ("[lease]\nurl = 'ftp://h'", "3: lease.url: no register is known for ftp://; use a path, or one of: "),
        ("[lease]\nttl_s = 0", "4: lease.ttl_s must be at least 1, not 0"),
        ("[segment]\nmax_tokens = 3", "3: segment.max_tokens must be 0 (the model's own limit) or at least 8"),
        (
            "[segment]\nmax_tokens = 32\ntarget_tokens = 33",
            "3: segment.target_tokens (33) must not exceed max_tokens (32)",
        ),
    ],
)
def test_wrong_setting(tmp_path: Path, text: str, message: str) -> None:
    assert refuse(tmp_path, MINIMAL + text).message.startswith(f"{CONFIG_NAME}:{message}")


@pytest.mark.parametrize("text", ["", "[sources]\n", "[store]\nuri = 'x'\n"])
def test_no_source(tmp_path: Path, text: str) -> None:
    error = refuse(tmp_path, text)
    assert "no source of documents" in error.message
    assert "lodestream init" in error.hint


def test_section_written_as_a_value(tmp_path: Path) -> None:
    assert "section of settings" in refuse(tmp_path, "segment = 3\n" + MINIMAL).message
    assert "section of settings" in refuse(tmp_path, "sources = 3\n").message


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    error = refuse(tmp_path, MINIMAL, "run.executor=x", LODESTREAM__RUN__CHUNK_DOCUMENTS="many")
    assert sorted(line.partition(":")[0] for line in error.message.splitlines()) == [
        "--set",
        "LODESTREAM__RUN__CHUNK_DOCUMENTS",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segment", "not an assignment"),
        ("=3", "not an assignment"),
        ("segment..x=3", "not an assignment"),
        ("segment=3", "segment must be a section of settings"),
        ("segment.max_tokens=x", "--set: segment.max_tokens must be a whole number"),
        ("segment.max_tokens.x=3", "segment.max_tokens"),
        ("segment.max_tokns=3", "did you mean segment.max_tokens?"),
        ("sources=3", "sources is a section"),
        ("sources.docs=3", "sources.docs is a section"),
        ("sources.docs.path.x=3", "sources.docs.path is a setting"),
        ("sources.other.include=x", "sources.other.path is missing"),
        ("nothing=3", "nothing is not a setting"),
    ],
)
def test_wrong_override(tmp_path: Path, override: str, message: str) -> None:
    assert message in refuse(tmp_path, MINIMAL, override).message


@given(st.text(alphabet=st.sampled_from("abcxyz_.=[]\"'1 "), max_size=20))
def test_any_override_is_taken_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, override: str) -> None:
    try:
        loaded = load(tmp_path_factory.mktemp("config"), MINIMAL, (override,))
    except ConfigError as error:
        assert error.message and error.hint  # noqa: PT017
    else:
        assert "--set" in loaded.origins.values()


@pytest.mark.parametrize("variable", ["LODESTREAM__", "LODESTREAM__A____B"])
def test_wrong_variable(tmp_path: Path, variable: str) -> None:
    assert variable in refuse(tmp_path, MINIMAL, **{variable: "1"}).message


@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_initial_file_holds_any_path(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    folder = tmp_path_factory.mktemp("config")
    write_initial_config(folder, source_path=path)
    assert load_config(start=folder, environ={}).config.sources["docs"].path == path


def test_initial_file_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / CONFIG_NAME
    target.write_text("mine")
    for place in (target, tmp_path):
        with pytest.raises(ConfigError, match="exists already"):
            write_initial_config(place, source_path="docs")
    assert target.read_text() == "mine"


def test_initial_file_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write_initial_config(tmp_path / "none" / CONFIG_NAME, source_path="docs")


def test_initial_file_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        write_initial_config(tmp_path, source_path="docs\udcff")
    assert not (tmp_path / CONFIG_NAME).exists()


def test_initial_file_shows_the_defaults(tmp_path: Path) -> None:
    """Every line that is commented out holds a setting that exists, with the value it has anyway."""
    write_initial_config(tmp_path, source_path="docs")
    text = (tmp_path / CONFIG_NAME).read_text()
    settings = [
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line for line in text.split("\n")
    ]
    assert sum(old != new for old, new in zip(text.split("\n"), settings, strict=True)) >= 8
    uncommented = "\n".join(settings)
    assert tomllib.loads(uncommented)["run"]["executor"] == "auto"
    initial = load(tmp_path, text).config
    assert load(tmp_path, uncommented).config == initial == Config(sources={"docs": FilesSource(path="docs")})
