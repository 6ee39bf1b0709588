"""Checks and times every kernel on the GPU of this machine.

    python -m lodestream.kernels.gpu_check [--only attention rope] [--model FOLDER] [--output FILE] [--no-times]
    python -m lodestream.kernels.gpu_check --interpret      the same script without a GPU, tiny and untimed

Exit codes: 0 all results are right, 1 some are not, 2 there is nothing to run on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lodestream.errors import LodestreamError

if TYPE_CHECKING:
    from lodestream.kernels.gpu_check.target import Target

KERNELS = ("attention", "add_norm", "embed_norm", "glu", "rope", "span_pool")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    if options.interpret:
        # Read when triton is imported, which nobody has done yet.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.interpret and not torch.cuda.is_available():
        print(
            f"no GPU here: torch {torch.__version__} sees none. Run this on a machine with an NVIDIA GPU, "
            "or with --interpret to run the same script in Triton's interpreter",
            file=sys.stderr,
        )
        return 2
    try:
        return _run(options)
    except LodestreamError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lodestream.kernels.gpu_check",
        description="Results of every kernel against float64, its time against the best dense form that is present.",
    )
    parser.add_argument("--only", nargs="+", choices=KERNELS, default=KERNELS, help="kernels to run")
    parser.add_argument("--model", type=Path, help="a model folder: its encoder is checked as well")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.jsonl"), help="the benchmark file")
    parser.add_argument("--rounds", type=int, default=30, help="how often each form is timed")
    parser.add_argument("--no-times", action="store_true", help="results only")
    parser.add_argument("--interpret", action="store_true", help="no GPU: tiny inputs, no times, no file")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


def _run(options: argparse.Namespace) -> int:
    import torch

    from lodestream.kernels.gpu_check.target import Target

    target = Target(
        device=torch.device("cpu" if options.interpret else "cuda"), rounds=0 if options.interpret else options.rounds
    )
    print(f"{target.name}; torch {torch.__version__}")
    failures = _check(target, options)
    if not options.no_times:
        failures += _time(target, options)
    print("\n".join(failures) or "all results are right")
    return 1 if failures else 0


def _check(target: Target, options: argparse.Namespace) -> list[str]:
    """Runs the checks and returns what is wrong. A kernel that does not even run is no reason to leave the others out:
    machines with a GPU are not had every day."""
    from lodestream.kernels.gpu_check.correctness import list_checks
    from lodestream.kernels.gpu_check.encoder import list_encoder_checks

    checks = [check for check in list_checks(target) if check.kernel in options.only]
    if options.model is not None:
        checks += list_encoder_checks(target, options.model)
    worst: dict[str, list[float]] = {}
    failures = []
    for check in checks:
        try:
            excess = check.measure()
        except Exception as error:
            failures.append(f"WRONG: {check.kernel}, {check.case}: {_shorten(error)}")
            continue
        worst.setdefault(check.kernel, []).append(excess)
        if excess > 1:
            failures.append(f"WRONG: {check.kernel}, {check.case}: {excess:.2f} of the allowed error")
    for kernel, shares in worst.items():
        print(f"{kernel:<12} {len(shares):>4} checks, largest error {max(shares):.2f} of the allowed one")
    return failures


def _time(target: Target, options: argparse.Namespace) -> list[str]:
    """Times the cases and returns which of our forms did not run."""
    from lodestream.kernels.gpu_check.report import Report
    from lodestream.kernels.gpu_check.speed import OURS, list_cases
    from lodestream.kernels.gpu_check.target import measure_roofs

    report = Report(
        path=options.output if target.is_gpu else None,
        machine=target.name,
        command=" ".join(["python -m lodestream.kernels.gpu_check", *sys.argv[1:]]),
    )
    report.start()
    roofs = measure_roofs(target)
    if target.is_gpu:
        report.add_roofs(roofs)
    failures = []
    for case in list_cases(target):
        if case.kernel not in options.only:
            continue
        forms = {}
        for name, form in case.forms.items():
            try:
                form()
            except Exception as error:
                failure = f"{case.kernel}, {case.case}: {name} does not run here: {_shorten(error)}"
                print(failure)
                failures += [failure] if name.startswith(OURS) else []
                continue
            forms[name] = form
        report.add_case(case, target.time_ms(forms), roofs)
    if report.path is not None:
        print(f"written to {report.path}")
    return failures


def _shorten(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
