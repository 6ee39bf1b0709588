"""Settings of the store's upkeep: when files are merged, and when the leavings of killed runs are removed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import Field

from lodestream.pipeline.config.types import Duration, Section

if TYPE_CHECKING:
    from lodestream.storage.maintenance import UpkeepOptions


class UpkeepConfig(Section):
    """When the files of a table are merged at the end of a run, and when debris is removed.

    ``max_small_files``    once a table has more small files than this
    ``max_deleted_share``  once so large a share of a file's rows is deleted
    ``sweep_after``        files that belong to no version are removed at this age: longer than a chunk of a run takes
    """

    max_small_files: int = Field(default=32, ge=1)
    max_deleted_share: float = Field(default=0.1, gt=0, le=1)
    sweep_after: Duration = 86_400.0

    def options(self) -> UpkeepOptions:
        """The settings as the store takes them."""
        from lodestream.storage.maintenance import UpkeepOptions

        return UpkeepOptions(
            max_small_files=self.max_small_files,
            max_deleted_share=self.max_deleted_share,
            sweep_after=timedelta(seconds=self.sweep_after),
        )
