"""Ray's cluster launcher takes ``ray_cluster.yaml``: checked offline, with Ray's own schema and checks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")
autoscaler = pytest.importorskip("ray.autoscaler")


@pytest.fixture
def cluster(repository: Path) -> dict[str, Any]:
    with (repository / "ray_cluster.yaml").open(encoding="utf-8") as handle:
        return yaml.safe_load(handle)


def validate(cluster: dict[str, Any]) -> dict[str, Any]:
    """The cluster as the launcher would use it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    node_types, head = prepared["available_node_types"], prepared["head_node_type"]
    if head not in node_types:
        raise ValueError(f"head_node_type {head!r} is none of {sorted(node_types)}")
    return prepared


def test_launcher_takes_the_file(cluster: dict[str, Any]) -> None:
    prepared = validate(cluster)
    assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_every_ray_process_asks_for_the_token(cluster: dict[str, Any]) -> None:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert len(commands) == 4
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_dashboard_listens_on_the_head_only(cluster: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_nodes_install_what_the_checkout_locks(cluster: dict[str, Any], repository: Path) -> None:
    assert cluster["file_mounts"]["~/lodestream"] == "."
    assert "make -C ~/lodestream install" in cluster["setup_commands"]
    assert "install:" in (repository / "Makefile").read_text(encoding="utf-8")


def test_unknown_key_is_refused(cluster: dict[str, Any]) -> None:
    cluster["head_start_ray_comands"] = cluster.pop("head_start_ray_commands")
    with pytest.raises(jsonschema.ValidationError, match="head_start_ray_comands"):
        validate(cluster)


def test_wrong_head_node_type_is_refused(cluster: dict[str, Any]) -> None:
    """Ray's schema lets it pass."""
    prepared = validate(cluster)
    prepared["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(prepared)
