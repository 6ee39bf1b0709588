"""What a process of the command sets for itself: few heaps, and never what the user has set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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
