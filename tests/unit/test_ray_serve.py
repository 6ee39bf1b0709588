"""``deploy/ray_serve.yaml``: Ray Serve takes it, knows every name in it, and it builds our application.

Serve's schema lets names pass that it does not know, so that a misspelt one would be without effect: they are looked
for here.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

schema = pytest.importorskip("ray.serve.schema")

FREE = {"args", "runtime_env", "user_config"}  # what is in them is not Serve's


def name_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field may hold, also in a list or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list):
        for part in get_args(annotation):
            yield from name_models(part)


def find_unknown(model: type[BaseModel], tree: dict[str, Any], place: str = "") -> Iterator[str]:
    """Names in ``tree`` that ``model`` does not have."""
    for name, value in tree.items():
        if name not in model.model_fields:
            yield f"{place}{name}"
            continue
        for inner in () if name in FREE else name_models(model.model_fields[name].annotation):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    yield from find_unknown(inner, item, f"{place}{name}.")


@pytest.fixture
def tree(repository: Path) -> dict[str, Any]:
    with (repository / "deploy" / "ray_serve.yaml").open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def test_serve_takes_the_file_and_knows_every_name(tree: dict[str, Any]) -> None:
    schema.ServeDeploySchema.model_validate(tree)
    assert list(find_unknown(schema.ServeDeploySchema, tree)) == []


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((), "http_option"),
        (("http_options",), "prot"),
        (("logging_config",), "log_levle"),
        (("applications", 0), "import_pth"),
        (("applications", 0, "deployments", 0), "num_replica"),
    ],
)
def test_a_misspelt_name_is_found(tree: dict[str, Any], place: tuple[Any, ...], name: str) -> None:
    part = tree
    for step in place:
        part = part[step]
    part[name] = 1
    assert [found.rpartition(".")[2] for found in find_unknown(schema.ServeDeploySchema, tree)] == [name]


def test_it_builds_the_application(tree: dict[str, Any], tmp_path: Path) -> None:
    from ray._common.utils import import_attr

    from lodestream.errors import ConfigError
    from lodestream.pipeline.config.settings import write_initial_config
    from lodestream.pipeline.serve.ray_endpoint import BuildArguments

    (application,) = tree["applications"]
    build = import_attr(application["import_path"])
    write_initial_config(tmp_path, source_path=".")
    (tmp_path / "token").write_text("a-token-of-the-test")
    given = application["args"] | {"config": str(tmp_path / "lodestream.toml")}
    assert build(BuildArguments(**given | {"set": ["serve.token_file=token"]})) is not None
    with pytest.raises(ConfigError, match="serve.token_file"):
        build(BuildArguments(**given | {"set": ["serve.host=0.0.0.0"]}))
    with pytest.raises(ValueError, match="confg"):
        BuildArguments(**given | {"confg": "x"})
    names = {deployment["name"] for deployment in application["deployments"]}
    assert names == {build(BuildArguments(**given | {"set": ["serve.token_file=token"]}))._bound_deployment.name}
