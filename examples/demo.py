"""The demonstration behind ``make demo``: a real corpus, a backfill, two searches, an edit, a refresh.

Everything happens in ``.demo/`` with the same commands that a user would type.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from demo_corpus import build_corpus, describe

FOLDER = Path(".demo")
QUESTIONS = ("how are relative imports resolved?", "install the package with pip")
EDITED = "python/import.rst"
DELETED = "python/in.rst"


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    numbers = build_corpus(FOLDER / "corpus")
    print(f"wrote {describe(numbers)} to {FOLDER / 'corpus'}:")
    print("what the packages installed here say of themselves, and Python's language reference\n")
    lodestream("init", "corpus")
    lodestream("run")
    for question in QUESTIONS:
        lodestream("search", question, "--limit", "2")
    edit(FOLDER / "corpus")
    lodestream("refresh")
    show_difference()


def lodestream(*arguments: str) -> None:
    """Runs a command as a user would, in the demo's folder, and shows it."""
    shown = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
    print(f"$ lodestream {shown}", flush=True)
    done = subprocess.run([sys.executable, "-m", "lodestream", *arguments], cwd=FOLDER, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(flush=True)


def edit(corpus: Path) -> None:
    """Adds a paragraph to one document and deletes another."""
    path = corpus / EDITED
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\n\nThe demonstration added this paragraph. Nothing else changed.\n", encoding="utf-8")
    (corpus / DELETED).unlink()
    print(f"added a paragraph to {EDITED}, deleted {DELETED}\n")


def show_difference() -> None:
    """What the second run computed, and what it took from the store."""
    command = [sys.executable, "-m", "lodestream", "status", "--json"]
    done = subprocess.run(command, cwd=FOLDER, check=False, capture_output=True, text=True)
    run = json.loads(done.stdout)["last_run"]
    segments, tokens = run["segments"], run["tokens"]
    share = 100 * tokens["encoded"] / tokens["total"]
    print(f"the edited document: {segments['encoded']} of {segments['total']} segments encoded, the others reused;")
    print(f"{tokens['encoded']} of its {tokens['total']} tokens went through the encoder ({share:.1f} %)")


if __name__ == "__main__":
    main()
