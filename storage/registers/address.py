"""Addresses of servers, with a password or without."""

from __future__ import annotations

import re
from typing import Final

# Up to the last @: a password that was not escaped may hold any of / ? # @ itself.
_CREDENTIALS: Final = re.compile(r"(?P<head>\w+://[^:@/?#\s]*):\S*@")
_PARAMETER: Final = re.compile(r"(?P<head>\b\w*password\s*=\s*)(?:'[^']*'|[^&\s]*)", re.IGNORECASE)


def hide_password(url: str) -> str:
    """Return ``url`` as it may be shown.

    >>> hide_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    return _PARAMETER.sub(r"\g<head>***", _CREDENTIALS.sub(r"\g<head>:***@", url))
