"""The check of a GPU, run where there is none: its whole flow in Triton's interpreter, and what it makes of times."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.gpu_check import correctness
from lodestream.kernels.gpu_check.__main__ import KERNELS, main
from lodestream.kernels.gpu_check.correctness import Check
from lodestream.kernels.gpu_check.encoder import list_encoder_checks
from lodestream.kernels.gpu_check.oracle import Expected, measure_excess
from lodestream.kernels.gpu_check.report import Report, find_fraction
from lodestream.kernels.gpu_check.target import Roofs, Target, measure_roofs
from lodestream.kernels.packing import PackedBatch
from tests.support.tiny_models import write_model
from tests.support.triton_process import needs_triton

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
ROOFS = Roofs(bytes_per_s=1e9, flops_per_s=1e12)


@needs_triton
def test_the_whole_script_runs_in_the_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "lodestream.kernels.gpu_check", "--interpret"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in KERNELS:
        assert f"{kernel:<12}" in done.stdout, "checked"
        assert f"{kernel}, " in done.stdout, "run beside its baselines"
    assert "all results are right" in done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing was timed, nothing is written"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU here" in capsys.readouterr().err


def fail() -> float:
    raise RuntimeError("an illegal instruction\nand more")


@pytest.mark.parametrize(
    ("measure", "code", "message"),
    [(lambda: 0.5, 0, "all results"), (lambda: 1.5, 1, "1.50 of the allowed"), (fail, 1, "an illegal instruction")],
)
def test_wrong_results_end_with_1(
    measure: Callable[[], float],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    checks = [Check(kernel="rope", case="a", measure=measure), Check(kernel="glu", case="b", measure=lambda: 9.0)]
    monkeypatch.setattr(correctness, "list_checks", lambda target: checks)
    assert main(["--interpret", "--no-times", "--only", "rope"]) == code
    printed = capsys.readouterr().out
    assert message in printed
    assert "glu" not in printed


def test_an_encoder_is_held_to_the_cpu(tmp_path: Path) -> None:
    write_model(tmp_path, "modernbert", "published")
    checks = list(list_encoder_checks(Target(device=torch.device("cpu"), rounds=0), tmp_path))
    assert [check.measure() <= 1 for check in checks] == [True, True]


def test_an_encoder_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "modernbert", "published")
    encode, calls = PackedEncoder.encode, iter(range(99))

    def encode_otherwise(self: PackedEncoder, batch: PackedBatch) -> torch.Tensor:
        return encode(self, batch) + 0.01 * next(calls)

    monkeypatch.setattr(PackedEncoder, "encode", encode_otherwise)
    checks = list(list_encoder_checks(Target(device=torch.device("cpu"), rounds=0), tmp_path))
    assert [check.measure() <= 1 for check in checks] == [False, False]


def test_errors_are_shares_of_the_budget() -> None:
    expected = Expected(values=torch.tensor([1.0, 2.0]).double(), budget=torch.tensor([0.1, 0.2]).double())
    assert measure_excess(torch.tensor([1.05, 2.0]), expected) == pytest.approx(0.5, rel=1e-4)
    assert measure_excess(torch.tensor([1.0, math.nan]), expected) == math.inf
    assert measure_excess(torch.tensor([1.0]), expected) == math.inf


def test_times_become_lines_of_a_benchmark_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lodestream.kernels.gpu_check.speed import OURS, Case

    report = Report(path=tmp_path / "gpu_check.jsonl", machine="a GPU", command="a command")
    report.start()
    report.add_roofs(ROOFS)
    case = Case(kernel="glu", case="gelu", x=512, forms={}, num_bytes=4_000_000)
    report.add_case(case, {OURS: [5.0, 8.0, 9.0], "eager": [20.0, 16.0, 18.0], "compiled": [10.0, 10.0]}, ROOFS)
    lines = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    ours = next(line for line in lines if line["provider"] == OURS and line["metric"] == "time")
    assert (ours["p50"], ours["unit"], ours["x"], ours["num_values"]) == (8.0, "ms", 512, 3)
    assert ours["config"] == {"kernel": "glu", "case": "gelu"}
    share = next(line for line in lines if line["metric"] == "share of the roof")
    assert share["p50"] == pytest.approx(0.5), "4 MB at 1 GB/s take 4 ms of 8"
    printed = capsys.readouterr().out
    assert "50% of the roof of a copy" in printed
    assert "0.80 of the best baseline" in printed
    assert find_fraction(Case(kernel="a", case="b", x=1, forms={}, flops=1e9), 2.0, ROOFS) == pytest.approx(0.5)


def test_a_form_that_never_ran_has_no_times(tmp_path: Path) -> None:
    from lodestream.kernels.gpu_check.speed import Case

    report = Report(path=tmp_path / "gpu_check.jsonl", machine="a GPU", command="a command")
    report.start()
    report.add_case(Case(kernel="glu", case="gelu", x=1, forms={}), {"eager": [1.0]}, ROOFS)
    lines = (tmp_path / "gpu_check.jsonl").read_text().splitlines()
    assert [json.loads(line)["provider"] for line in lines] == ["eager"]


def test_the_interpreter_is_no_machine_to_take_times_of() -> None:
    target = Target(device=torch.device("cpu"), rounds=3)
    assert target.time_ms({"a": lambda: None}) == {"a": []}
    assert measure_roofs(target).bytes_per_s == math.inf


@needs_gpu
def test_results_on_a_gpu() -> None:
    assert main(["--no-times"]) == 0
