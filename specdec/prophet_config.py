"""prophet_config.json ↔ `ProphetConfig`, as plain dictionaries.

The block's sizes stand among the prophet's own fields, next to `format_version`.  Every field has
to be there and no other may be.  Does not know files, as `specdec.hf_config` does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from specdec.config import BlockConfig, ProphetConfig
from specdec.hf_config import integer, number, text

FORMAT_VERSION = 1

READERS: dict[Any, Callable[[Mapping[str, Any], str], Any]] = {
    int: integer,
    float: number,
    str: text,
}


def prophet_fields(config: ProphetConfig) -> dict[str, Any]:
    own = asdict(config)
    block = own.pop("block")
    return {"format_version": FORMAT_VERSION, **own, **block}


def prophet_config(described: Mapping[str, Any]) -> ProphetConfig:
    """Refuses with a ValueError that names the field."""
    version = integer(described, "format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version {version} is not known: {FORMAT_VERSION} is")
    own = {field.name: field.type for field in fields(ProphetConfig) if field.name != "block"}
    block = {field.name: field.type for field in fields(BlockConfig)}
    for name in sorted(described.keys() - own.keys() - block.keys() - {"format_version"}):
        raise ValueError(f"{name} is not known")
    return ProphetConfig(BlockConfig(**_read(described, block)), **_read(described, own))


def _read(described: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    return {name: READERS[kind](described, name) for name, kind in types.items()}
