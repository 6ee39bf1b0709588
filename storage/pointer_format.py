"""How the pointer's record is written: what its snapshots have in common is written once.

A recipe stands under the feature version that it describes. The checkpoint of an earlier snapshot is written as what
differs from that of the next one: cursors that list files would make the record grow with files times snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Values = dict[str, Any]


def pack(values: Values) -> Values:
    """Return the record as it is written; ``values`` stays as it is."""
    packed = values | {"history": [dict(record) for record in values["history"]], "recipes": {}}
    packed["versions"] = [dict(record) for record in values["versions"]]
    packed["staged"] = None if values["staged"] is None else dict(values["staged"])
    for holder in _list_holders(packed):
        known = packed["recipes"].setdefault(holder["feature_version"], holder["recipe"])
        if known == holder["recipe"]:
            del holder["recipe"]
    later = values["checkpoint"]
    for record, whole in zip(reversed(packed["history"]), reversed(values["history"]), strict=True):
        del record["checkpoint"]
        record["checkpoint_change"] = find_change(later, whole["checkpoint"])
        later = whole["checkpoint"]
    return packed


def unpack(packed: Mapping[str, Any]) -> Values:
    """Return what ``pack`` was given.

    Raises:
        KeyError, TypeError, AttributeError: ``packed`` is not of that form.
    """
    values = dict(packed)
    values["history"] = [dict(record) for record in packed["history"]]
    values["versions"] = [dict(record) for record in packed["versions"]]
    values["staged"] = None if packed["staged"] is None else dict(packed["staged"])
    recipes = values.pop("recipes")
    for holder in _list_holders(values):
        if "recipe" not in holder:
            holder["recipe"] = recipes[holder["feature_version"]]
    later = values["checkpoint"]
    for record in reversed(values["history"]):
        later = record["checkpoint"] = apply_change(later, record.pop("checkpoint_change"))
    return values


def find_change(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Values:
    """Return what makes ``wanted`` of ``base``: values to put, names to drop, and changes within what both have."""
    put: Values = {}
    within: Values = {}
    for name, value in wanted.items():
        before = base.get(name)
        if name in base and before == value:
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            within[name] = find_change(before, value)
        else:
            put[name] = value
    drop = [name for name in base if name not in wanted]
    return {key: part for key, part in (("put", put), ("drop", drop), ("within", within)) if part}


def apply_change(base: Mapping[str, Any], change: Mapping[str, Any]) -> Values:
    """Return what ``find_change`` was asked for."""
    wanted = dict(base)
    for name in change.get("drop", ()):
        del wanted[name]
    for name, inner in change.get("within", {}).items():
        wanted[name] = apply_change(base[name], inner)
    wanted.update(change.get("put", {}))
    return wanted


def _list_holders(values: Values) -> Iterator[Values]:
    """Yield every part of a record that has a feature version."""
    yield values
    yield from values["history"]
    yield from values["versions"]
    if values["staged"] is not None:
        yield values["staged"]
