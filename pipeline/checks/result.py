"""What a check of `lodestream check` has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What was looked at, how it stands, and what to do about it (empty where nothing)."""

    name: str
    level: Literal["pass", "warn", "fail"]
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        """The result as JSON values."""
        return {"name": self.name, "level": self.level, "detail": self.detail, "fix": self.fix}
