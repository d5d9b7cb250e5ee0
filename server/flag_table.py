"""`python -m server.flag_table`: writes the table of settings into docs/operations.md.

The table is what the settings say of themselves; a test holds it to that.
"""

import sys
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.settings import Settings

BEGIN, END = "<!-- settings: python -m server.flag_table -->", "<!-- end of settings -->"


def table() -> str:
    """A row of Markdown for each setting: flag, variable, default and meaning."""
    shortcuts = Settings.model_config.get("cli_shortcuts") or {}
    rows = ["| flag | variable | default | |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        kebab = name.replace("_", "-")
        flag = shortcuts.get(kebab, kebab)
        rows.append(
            f"| `--{flag}` | `SPECDEC_{name.upper()}` | {_default(field)} | {_meaning(field)} |"
        )
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    assert value is not PydanticUndefined
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    named = " \\| ".join(f"`{c}`" for c in choices if isinstance(c, str))
    return f"{field.description} ({named})" if named else str(field.description)


def with_table(text: str) -> str:
    """The document with its table up to date.  ValueError where it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/operations.md")
    path.write_text(with_table(path.read_text("utf-8")), "utf-8")
