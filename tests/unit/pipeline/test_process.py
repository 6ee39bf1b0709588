"""What a process of the command sets for itself: few heaps, and never what the user has set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lodestream.pipeline import process
from lodestream.pipeline.process import ARENAS_VARIABLE, NUM_ARENAS

NUM_THREADS = 4 * NUM_ARENAS

COUNT_HEAPS = f"""
import ctypes, sys, threading
from lodestream.pipeline.process import set_process_defaults

set_process_defaults()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier({NUM_THREADS})

def allocate():
    together.wait()
    libc.malloc(4096)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range({NUM_THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
print(open(sys.argv[1]).read().count("<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heaps these are")
@pytest.mark.parametrize("chosen", [None, str(NUM_THREADS)])
def test_many_threads_share_few_heaps(chosen: str | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    environ = {name: value for name, value in os.environ.items() if name != ARENAS_VARIABLE}
    if chosen is not None:
        environ[ARENAS_VARIABLE] = chosen
    report = tmp_path_factory.mktemp("heaps") / "malloc_info.xml"
    done = subprocess.run(
        [sys.executable, "-c", COUNT_HEAPS, str(report)], env=environ, capture_output=True, text=True, check=True
    )
    num_heaps = int(done.stdout)
    assert num_heaps <= NUM_ARENAS if chosen is None else num_heaps > NUM_ARENAS


def test_a_ray_that_serves_finds_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert not process.has_haproxy()
    process.set_ray_serve_defaults(tmp_path, metrics_port=1234, stats_port=1235, replica_ports=range(20_000, 20_064))
    assert process.has_haproxy()
    assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "3", "what the user has set stays"
    assert os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] == "20063"
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"].startswith(str(tmp_path))


def test_no_token_is_made_up_where_there_is_no_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled"})
    process.set_ray_serve_defaults(tmp_path, metrics_port=1, stats_port=2, replica_ports=range(2))
    assert "RAY_AUTH_TOKEN" not in os.environ


LEAVE_HOLES = """
import pathlib
import pyarrow  # its own memory is no part of this
from lodestream.pipeline.process import return_free_memory

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [b"x" * 60_000 for _ in range(2000)]
before = resident()
del blocks[::2]  # and not the last one: nothing is free at the end of the heap
held = resident()
return_free_memory()
print(before, held, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heaps these are")
def test_holes_in_the_heap_are_given_back() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", LEAVE_HOLES], env=environ, capture_output=True, text=True, check=True)
    before, held, after = map(int, done.stdout.split())
    assert held > before - 30_000_000, "the C library gives them back by itself: there is nothing to show"
    assert after < held - 40_000_000
