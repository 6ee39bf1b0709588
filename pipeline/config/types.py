"""The types that settings are made of."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from lodestream.pipeline.durations import parse_duration
from lodestream.pipeline.sizes import parse_size
from lodestream.pipeline.sql_names import check_table

AUTO_ENCODING: Final = "auto"


def check_encoding(name: str) -> str:
    """``name`` if it is ``auto`` or an encoding of text that Python knows.

    Raises:
        ValueError: it is neither.
    """
    if name == AUTO_ENCODING:
        return name
    try:
        b"a".decode(name)  # refuses what is no encoding of text, such as "hex"
    except (LookupError, UnicodeError, ValueError):
        raise ValueError('must be "auto" or the name of an encoding, such as "utf-8" or "windows-1252"') from None
    return name


Text = Annotated[str, StringConstraints(min_length=1)]
Patterns = Annotated[
    tuple[Text, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
_Bytes = Annotated[int, BeforeValidator(lambda value: parse_size(value) if isinstance(value, str) else value)]
Size = Annotated[_Bytes, Field(ge=1)]
# Zero turns a part off.
Budget = Annotated[_Bytes, Field(ge=0)]
# In seconds.
Duration = Annotated[
    float, BeforeValidator(lambda value: parse_duration(value) if isinstance(value, str) else value), Field(ge=0)
]
TableName = Annotated[Text, AfterValidator(check_table)]
Encoding = Annotated[Text, AfterValidator(check_encoding)]
# A name stands in dotted paths and in variables, so it has neither dots nor a double underscore.
SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]


class Section(BaseModel):
    """A section of settings: frozen, no unknown names, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
