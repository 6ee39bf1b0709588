"""The types that settings are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from lodestream.pipeline.sizes import parse_size

Text = Annotated[str, StringConstraints(min_length=1)]
Patterns = Annotated[
    tuple[Text, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
Size = Annotated[
    int, BeforeValidator(lambda value: parse_size(value) if isinstance(value, str) else value), Field(ge=1)
]
# A name stands in dotted paths and in variables, so it has neither dots nor a double underscore.
SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]


class Section(BaseModel):
    """A section of settings: frozen, no unknown names, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
