"""What the fork server of a chaos run imports, so that its workers start at once."""

from __future__ import annotations

import warnings

from tests.fault.chaos import reader, worker

__all__ = ["reader", "worker"]

# It warns of forks by a process that uses it; the fork server imports it and does nothing with it.
warnings.filterwarnings("ignore", message="lance is not fork-safe")
