"""Documentation that is generated, or that names what must exist."""

import re

import pytest
from ops import ROOT

from server.flag_table import table, with_table
from server.settings import Settings

DOCS = ROOT / "docs"


def test_the_table_of_settings_is_up_to_date() -> None:
    text = (DOCS / "operations.md").read_text()
    assert with_table(text) == text, "python -m server.flag_table"


def test_the_table_names_every_setting() -> None:
    rows = table().splitlines()
    assert len(rows) == 2 + len(Settings.model_fields)
    assert rows[2].startswith("| `--checkpoint` | `SPECDEC_CHECKPOINT` | `checkpoints/default` |")
    assert any(row.startswith("| `--api-key` | `SPECDEC_API_KEYS` |  |") for row in rows)


def test_a_document_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        with_table("nothing")


@pytest.mark.parametrize("name", ["operations.md", "api.md", "checkpoints.md", "../README.md"])
def test_links_lead_somewhere(name: str) -> None:
    path = DOCS / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target
