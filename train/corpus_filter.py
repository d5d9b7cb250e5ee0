"""Decide which files are worth training on, and which have been seen before.

A file is turned down with a one-word reason, so that the manifest can count them. Everything is
linear in the bytes read.

What this does not know: quality. It looks at lengths, digits, letters and repeated lines only;
a boring but well-formed file passes.
"""

from __future__ import annotations

import hashlib
import re

MIN_BYTES = 256
MAX_BYTES = 400_000
MAX_LINE = 2_000
MAX_DIGITS = 0.30
MAX_NON_ASCII = 0.10
MAX_REPEATED = 0.70
NON_TRIVIAL_LINE = 20

# Copies of other people's packages (often under another licence), tests and their data,
# translations, output.
SKIPPED_FOLDERS = frozenset(
    (
        *("_vendor", "_vendored", "vendor", "vendored", "vendored-meson", "third_party"),
        *("thirdparty", "extern", "external", "externals", "cextern", "subprojects"),
        *("node_modules", "bundled", "_bundled", "tests", "test", "testdata", "test_data"),
        *("test-data", "fixtures", "locale", "locales", "translations", "generated"),
        *("_generated", "license", "licenses"),
    )
)
SKIPPED_NAMES = re.compile(r"(?:.*/)?(?:[\w.-]*requirements[\w.-]*|AUTHORS)\.\w+")
GENERATED = re.compile(r"do not edit|auto(?:-|matically )?generated|@generated", re.IGNORECASE)
GENERATED_HEAD = 400
# A file may carry another licence than its package. Near the top any mention counts; further
# down, where prose merely discusses licences, only the address of one does.
FOREIGN = re.compile(
    r"creative\s*commons|\b(?:L|A)?GPL|GNU (?:Lesser |Affero )?General|GNU Free Documentation"
    r"|Mozilla Public",
    re.IGNORECASE,
)
FOREIGN_HEAD = 2_000
FOREIGN_ADDRESS = re.compile(r"creativecommons\.org/licenses/|gnu\.org/(?:licenses|copyleft)/")


def skipped_path(path: str) -> bool:
    """True for vendored code, tests, data, translations, output and lists of names."""
    if SKIPPED_NAMES.fullmatch(path) and not path.endswith(".py"):
        return True
    folders = [folder.lower() for folder in path.split("/")[:-1]]
    return any(f in SKIPPED_FOLDERS or f.endswith((".egg-info", ".dist-info")) for f in folders)


def clean(data: bytes) -> tuple[str, str]:
    """The text with LF line ends and an empty reason, or an empty text and the reason."""
    if not MIN_BYTES <= len(data) <= MAX_BYTES:
        return "", "size"
    if b"\0" in data:
        return "", "nul"
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError:
        return "", "encoding"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    reason = _flaw(text)
    return ("", reason) if reason else (text, "")


def _flaw(text: str) -> str:
    if max(map(len, text.split("\n"))) > MAX_LINE:
        return "long-line"
    visible = sum(not c.isspace() for c in text)
    if visible == 0:
        return "size"
    if sum(map(text.count, "0123456789")) > MAX_DIGITS * visible:
        return "digits"
    if len(re.findall(r"[^\x00-\x7f]", text)) > MAX_NON_ASCII * visible:
        return "non-ascii"
    if GENERATED.search(text[:GENERATED_HEAD]):
        return "generated"
    if FOREIGN.search(text[:FOREIGN_HEAD]) or FOREIGN_ADDRESS.search(text):
        return "other-licence"
    return ""


class SeenText:
    """Remembers whole texts and their lines, to recognise copies and near copies."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._lines: set[bytes] = set()

    def reason_to_drop(self, text: str) -> str:
        """Empty when the text is new enough; it is then remembered."""
        whole = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if whole in self._texts:
            return "duplicate"
        stripped = (line.strip() for line in text.split("\n"))
        lines = [
            hashlib.blake2b(line.encode(), digest_size=8).digest()
            for line in stripped
            if len(line) >= NON_TRIVIAL_LINE
        ]
        repeated = sum(line in self._lines for line in lines)
        if lines and repeated > MAX_REPEATED * len(lines):
            return "near-duplicate"
        self._texts.add(whole)
        self._lines.update(lines)
        return ""
