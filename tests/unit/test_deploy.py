"""The examples for schedulers: they parse, they run every five minutes, and what they start is a command of ours."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lodestream.pipeline.cli.app import app

EVERY_FIVE_MINUTES = "*/5 * * * *"


def parse_command(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its options, as the command line itself reads them."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("lodestream", list(arguments))
    name, command, rest = group.resolve_command(context, arguments)
    return name, command.make_context(name, rest, parent=context).params


def read_unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def test_parser_refuses_what_the_command_line_refuses() -> None:
    with pytest.raises(Exception, match="no-such"):
        parse_command(["refresh", "--no-such"])


def test_crontab(repository: Path) -> None:
    lines = (repository / "deploy" / "lodestream.cron").read_text(encoding="utf-8").splitlines()
    jobs = [line for line in lines if line and not line.startswith("#") and not re.match(r"[A-Z]+=", line)]
    assert len(jobs) == 1
    match = re.fullmatch(r"((?:\S+ ){5})(\w+) (.+)", jobs[0])
    assert match and (match[1].strip(), match[2]) == (EVERY_FIVE_MINUTES, "lodestream")
    assert "%" not in match[3], "cron takes it for a line end"
    assert subprocess.run(["sh", "-n", "-c", match[3]], check=False).returncode == 0
    words = shlex.split(match[3].split("&&")[1].split(">>")[0])
    assert words[0] == ".venv/bin/lodestream"
    assert parse_command(words[1:])[0] == "refresh"


def test_systemd_units(repository: Path) -> None:
    service = read_unit(repository / "deploy" / "lodestream-refresh.service")
    timer = read_unit(repository / "deploy" / "lodestream-refresh.timer")
    assert service["Service"]["Type"] == "oneshot"
    words = shlex.split(service["Service"]["ExecStart"])
    assert words[0].endswith("/bin/lodestream") and parse_command(words[1:])[0] == "refresh"
    assert timer["Timer"]["OnCalendar"] == "*:0/5"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_calendar(repository: Path) -> None:
    timer = read_unit(repository / "deploy" / "lodestream-refresh.timer")
    command = ["systemd-analyze", "calendar", timer["Timer"]["OnCalendar"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "*-*-* *:00/5:00" in done.stdout, done.stdout + done.stderr


def test_cronjob(repository: Path) -> None:
    job = yaml.safe_load((repository / "deploy" / "cronjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert spec["schedule"] == EVERY_FIVE_MINUTES and spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    verb, options = parse_command(container["command"][1:])
    assert verb == "refresh" and str(options["config"]) == "/etc/lodestream/lodestream.toml"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
