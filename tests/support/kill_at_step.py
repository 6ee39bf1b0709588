"""The command line in a process that kills itself when it passes a named step for the n-th time.

python -m tests.support.kill_at_step STEP N ARGUMENTS...
"""

from __future__ import annotations

import os
import signal
import sys

from lodestream.pipeline.cli.app import main
from lodestream.storage import steps


def kill_at(wanted: str, occurrence: int, sent: signal.Signals = signal.SIGKILL) -> None:
    """From now on the process dies (or stops, if ``sent`` is SIGSTOP) at its ``occurrence``-th pass of ``wanted``."""
    if wanted not in (*steps.STEPS, *steps.VERSION_STEPS):
        sys.exit(f"there is no step {wanted}")
    left = occurrence

    def reach(step: str) -> None:
        nonlocal left
        left -= step == wanted
        if step == wanted and left == 0:
            os.kill(os.getpid(), sent)

    steps.reach = reach


if __name__ == "__main__":
    _, name, number, *arguments = sys.argv
    kill_at(name, int(number))
    sys.argv = ["lodestream", *arguments]
    main()
