"""Looking at tables that belong together: their files, then their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lodestream.storage.findings import Finding
from lodestream.storage.table import Table
from lodestream.storage.verify_files import check_table_files, find_unreadable
from lodestream.storage.verify_rows import check_indexes, check_rows

if TYPE_CHECKING:
    from lance import LanceFragment


def check_content(tables: dict[str, Table], *, deep: bool) -> list[Finding]:
    """Return what is wrong with the files and rows of some tables that belong together."""
    findings: list[Finding] = []
    sound: dict[str, Sequence[LanceFragment]] = {}
    for name, table in tables.items():
        findings += check_table_files(table)
        broken = {finding.place for finding in findings}
        torn, sound[name] = find_unreadable(table, broken=broken, deep=deep)
        findings += torn
    findings += check_rows(tables, sound, deep=deep)
    broken_tables = {finding.place.partition("/")[0] for finding in findings if finding.mend == "drop file"}
    for name, table in tables.items() if deep else ():
        if table.folder not in broken_tables:
            findings += check_indexes(name, table)
    return findings
