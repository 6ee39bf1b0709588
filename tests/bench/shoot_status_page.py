"""Pictures of the status page in three states, by headless Chromium: docs/status-{healthy,lagging,quarantine}.png.

    python tests/bench/shoot_status_page.py [FOLDER]

The store is a real one of short pages of Python's language reference, run several times after edits. Its runs end
within a minute; the pointer's list of them is then spread over the last hours, so that the plots along the time show
something.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

if __package__ is None or not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from lodestream.storage.store import FeatureStore
from tests.support.served import POLL, Served, serve_http, wait_until
from tests.support.store_rows import take_lease
from tests.support.workspace import Workspace, short_topics

WIDTH = 1180
INTERVAL = timedelta(minutes=38)
NUM_DOCUMENTS = 60


def main() -> None:
    """Makes the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "docs"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="lodestream-") as temporary:
        workspace = build(Path(temporary))
        shoot(chromium, workspace, folder / "status-healthy.png", 1130, "refresh.freshness_target=1h")
        shoot(chromium, workspace, folder / "status-lagging.png", 1130, "refresh.freshness_target=2s", dark=True)
        for name in ("assert.rst", "while.rst", "yield.rst"):
            workspace.write(name, b"\xff\xff broken")
        workspace.run()
        spread(workspace)
        shoot(chromium, workspace, folder / "status-quarantine.png", 1470, "refresh.freshness_target=1h")


def build(root: Path) -> Workspace:
    """A store with a history."""
    documents = short_topics(NUM_DOCUMENTS)
    workspace = Workspace.create(root / "corpus", documents)
    workspace.run()
    for number, (name, text) in enumerate(list(documents.items())[:12]):
        if number % 3:
            workspace.write(name, text + "\n\nOne more paragraph, which nobody has read before. " * (number + 1))
        workspace.run()
    spread(workspace)
    return workspace


def spread(workspace: Workspace) -> None:
    """Moves the ends of the runs apart; the last one stays."""
    store = FeatureStore.open(str(workspace.store))
    lease = take_lease(store)

    def change(run: dict[str, Any]) -> dict[str, Any]:
        recent, now = run["recent"], datetime.now(UTC)
        moved = [
            entry | {"ended_at": (now - INTERVAL * (len(recent) - 1 - index)).isoformat()}
            for index, entry in enumerate(recent)
        ]
        return run | {"recent": moved}

    store.note_run(change, lease=lease)
    lease.release()


def shoot(chromium: str, workspace: Workspace, target: Path, height: int, *settings: str, dark: bool = False) -> None:
    """Serves the store, asks it for a while, and takes a picture of the page."""
    workspace.run()
    spread(workspace)
    with serve_http(workspace.load(POLL, *settings)) as served:
        ask(served, seconds=6.0)
        wait_until(lambda: served.client.get("/readyz").status_code == 200)
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme]
        size = f"--window-size={WIDTH},{height}"
        with tempfile.TemporaryDirectory() as profile:
            profile_option = f"--user-data-dir={profile}"
            picture = f"--screenshot={target}"
            subprocess.run([*command, size, profile_option, picture, served.url], check=True, capture_output=True)
    Image.open(target).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(target, optimize=True)
    print(f"wrote {target}, {target.stat().st_size // 1024} KiB")


def ask(served: Served, *, seconds: float) -> None:
    """Requests of each kind."""
    ids = sorted(short_topics(NUM_DOCUMENTS))
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends:
        served.client.get(f"/v1/features/{ids[number % len(ids)]}?granularity=document")
        served.client.post("/v1/features:get", json={"ids": ids[number % 20 : number % 20 + 10], "encoding": "int8"})
        if number % 10 == 0:
            served.client.post("/v1/search", json={"query": "how are names resolved?"})
            served.client.post("/v1/encode", json={"texts": [f"Text number {number}, never seen before."]})
        number += 1


if __name__ == "__main__":
    main()
