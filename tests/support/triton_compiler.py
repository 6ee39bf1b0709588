"""Kernels compiled for NVIDIA processors that are not here, and what the machine code says.

Triton compiles through its real launch path, so that what it specialises on is what a launch would give; only the
driver, which would ask a device, is replaced. The disassembler comes with triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SHARED_BYTES: Final = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that a block may have, by architecture. Nothing checks it without a driver."""

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TENSOR: Final = re.compile(r"^(HMMA|IMMA|HGMMA|UTC\w*MMA)")
_INSTRUCTION: Final = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z0-9_.]+)(.*?);")
_LABEL: Final = re.compile(r"^(\.L_x?_?\d+):")


class _Utilities:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_BYTES[device],
            "multiprocessor_count": 132,
            "warpSize": 32,
            "max_num_regs": 65536,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }


class _Driver:
    """Stands for a device of one architecture, and has its number: triton keeps what it compiled by device."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture
        self.utils = _Utilities()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return self._architecture

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """What one kernel became.

    Attributes:
        registers: of a thread. stack_bytes: of a thread; above 0 where registers were spilled.
        shared_bytes: of a block.
        num_spills: loads and stores of local memory.
        num_loads, num_wide_loads: of global memory; the latter are those of 16 bytes.
        loops: for each innermost loop with products, (instructions, tensor-core instructions).
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    num_spills: int
    num_loads: int
    num_wide_loads: int
    loops: tuple[tuple[int, int], ...]

    def count_blocks(self, *, num_warps: int) -> int:
        """Blocks that fit on one multiprocessor, by registers, shared memory and warps."""
        registers = -(-self.registers * 32 // 256) * 256 * num_warps
        return min(65536 // registers, 227 * 1024 // (self.shared_bytes + 1024), 64 // num_warps, 32)


def compile_kernel(
    kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], architecture: int
) -> MachineCode:
    """Compiles ``kernel[grid](*arguments, **constants)`` for compute capability ``architecture`` / 10."""
    driver.set_active(_Driver(architecture))
    compiled = kernel.warmup(*arguments, grid=(1,), **constants)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions, labels = _parse(listing)
    loads = [name for name, _ in instructions if name.startswith("LDG")]
    return MachineCode(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=compiled.metadata.shared,
        num_spills=sum(bool(re.match(r"(LDL|STL)\b", name)) for name, _ in instructions),
        num_loads=len(loads),
        num_wide_loads=sum(name.endswith(".128") for name in loads),
        loops=tuple(_find_loops(instructions, labels)),
    )


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def _parse(listing: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(name, operands) of each instruction, and the instruction that each label stands before."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append((instruction[2], instruction[3]))
    return instructions, labels


def _find_loops(instructions: list[tuple[str, str]], labels: dict[str, int]) -> list[tuple[int, int]]:
    loops = []
    for end, (name, operands) in enumerate(instructions):
        target = re.search(r"\.L_x?_?\d+", operands) if name.startswith("BRA") else None
        if target and labels.get(target[0], end + 1) <= end:
            loops.append((labels[target[0]], end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counts = [
        (end - start + 1, sum(bool(_TENSOR.match(name)) for name, _ in instructions[start : end + 1]))
        for start, end in inner
    ]
    return [count for count in counts if count[1]]
