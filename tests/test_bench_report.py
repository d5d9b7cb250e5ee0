"""Tables and plots of what benches wrote: the documents say what their files say."""

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from ops import ROOT

from bench.plot import DRAW, draw
from bench.plot import main as plot
from bench.report import read_record
from bench.table import WRITE
from bench.table import main as write_table

DOCS = ROOT / "docs"


def known(kinds: Collection[str]) -> list[str]:
    """Files of docs/ that these can read."""
    names = []
    for path in sorted(DOCS.glob("*.json")):
        try:
            read_record(path, kinds)
        except ValueError:
            continue
        names.append(path.name)
    return names


@pytest.mark.parametrize("name", known(WRITE))
def test_the_documents_have_the_tables_of_their_files(name: str) -> None:
    kind, record = read_record(DOCS / name, WRITE)
    text = (DOCS / "benchmarks.md").read_text()
    assert f"docs/{name}" in text
    missing = [line for line in WRITE[kind](record).splitlines() if line not in text]
    assert not missing, f"python -m bench.table docs/{name}"


@pytest.mark.parametrize("name", known(DRAW))
def test_every_file_can_be_drawn(name: str) -> None:
    assert draw(*read_record(DOCS / name, DRAW)).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["decode-cpu.json", "decode-batch-cpu.json", "auto-cpu.json"])
def test_figures_of_one_domain_can_be_drawn(name: str) -> None:
    kind, record = read_record(DOCS / name, DRAW)
    code = [result for result in record["results"] if result["domain"] == "code"]
    assert draw(kind, {**record, "results": code}).startswith(b"\x89PNG")


def test_all_kinds_are_there() -> None:
    kinds = {read_record(DOCS / name, WRITE)[0] for name in known(WRITE)}
    assert kinds == WRITE.keys() >= DRAW.keys()


@pytest.mark.parametrize("main", [plot, write_table])
@pytest.mark.parametrize(
    "content", [None, "no JSON", "[]", "{}", '{"results": 1}', '{"results": [1]}']
)
def test_a_file_of_no_figures_is_refused_by_name(
    main: Callable[[list[str]], int],
    content: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "figures.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main([str(path)])
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err


def test_a_plot_lies_beside_its_file(tmp_path: Path) -> None:
    path = tmp_path / "limit.json"
    path.write_text((DOCS / "limit-cpu.json").read_text())
    assert plot([str(path)]) == 0
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["limit.json", "limit.png"]


def test_what_is_not_known_is_a_dash_in_a_table() -> None:
    _, record = read_record(DOCS / "auto-cpu.json", WRITE)
    (result, *_) = record["results"]
    few = {"results": [{**result, "lower_95": None, "base_to_no_prophet_lower_95": None}]}
    row = WRITE["auto"](few).splitlines()[2]
    assert row.count("| – |") == 2
