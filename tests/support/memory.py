"""Peak memory of a command, and a model that is quick to run: what measuring memory takes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from safetensors.torch import load_file, save_file

from lodestream.actors.models import DEFAULT_MODEL, find_model
from tests.support.workspace import command_environ

MLP_WIDTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Resident memory of a command that ended well: its peak by the kernel's count, and (seconds, bytes) over time."""

    peak_bytes: int
    seconds: float
    samples: list[tuple[float, int]]
    output: str


def run_measured(folder: Path, *arguments: str, interval_s: float = 0.1, timeout_s: float = 600) -> MemoryUse:
    """``lodestream ARGUMENTS`` in ``folder``, as a user would type it, with an eye on its memory.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    log = folder / "command.log"
    with log.open("w") as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "lodestream", *arguments],
            cwd=folder,
            env=command_environ(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        process = psutil.Process(child.pid)
        samples: list[tuple[float, int]] = []
        peak_bytes = 0
        while child.poll() is None:
            seconds = time.perf_counter() - started
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                samples.append((seconds, process.memory_info().rss))
                peak_bytes = max(peak_bytes, _read_peak(child.pid), samples[-1][1])
            if seconds > timeout_s:
                child.kill()
            time.sleep(interval_s)
    output = log.read_text()
    if child.returncode:
        raise RuntimeError(f"lodestream {' '.join(arguments)} ended with {child.returncode}: {output[-2000:]}")
    seconds = time.perf_counter() - started
    return MemoryUse(peak_bytes=peak_bytes, seconds=seconds, samples=samples, output=output)


def _read_peak(pid: int) -> int:
    """The largest resident memory of a process so far, in bytes; 0 once it has ended.

    Not ``ru_maxrss``: that of a child begins with the memory of the process that started it, a whole test run here.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def cut_model(folder: Path) -> Path:
    """The default model with one layer and a narrow MLP: as wide, with the same vocabulary, many times as fast."""
    source, _ = find_model(DEFAULT_MODEL)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "encoder.layer." not in name or "encoder.layer.0." in name}
    for name, tensor in kept.items():
        if "intermediate.dense" in name:
            kept[name] = tensor[:MLP_WIDTH].contiguous()
        elif name.endswith("layer.0.output.dense.weight"):
            kept[name] = tensor[:, :MLP_WIDTH].contiguous()
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    cut = {"num_hidden_layers": 1, "intermediate_size": MLP_WIDTH}
    (folder / "config.json").write_text(json.dumps(config | cut))
    return folder
