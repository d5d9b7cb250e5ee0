"""`python -m train.fetch --out enwik8.zip`: fetches enwik8 from its home page, checked.

A transfer that breaks goes on where it stopped, within one call and from one call to the next.
What has another checksum is not kept.  The trainer reads the .zip as it is.
"""

import argparse
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

ENWIK8 = "http://mattmahoney.net/dc/enwik8.zip"
ENWIK8_SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"

_PIECE = 1 << 16


class FetchError(RuntimeError):
    """The file could not be had; the message names it and says why."""


def fetch(url: str, target: Path, sha256: str, attempts: int = 5, pause_s: float = 1.0) -> None:
    """Fetches url into target, unless it is there already.

    FetchError where the address does not answer in `attempts` tries, or what it gives has another
    sha256.
    """
    if target.exists():
        if _digest(target) == sha256:
            return
        raise FetchError(f"{target}: is there already, with another sha256 than {sha256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause_s * attempt)
        try:
            _go_on(url, partial)
            break
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise FetchError(f"{url}: {error.code} {error.reason}") from None
    else:
        raise FetchError(f"{url}: gave up after {attempts} tries: {reason}")
    found = _digest(partial)
    if found != sha256:
        partial.unlink()
        raise FetchError(f"{url}: has sha256 {found}, not {sha256}; nothing is kept")
    partial.replace(target)


def _go_on(url: str, partial: Path) -> None:
    """Appends what is missing; OSError where the transfer ends before it is whole."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            error.close()
            return
        raise
    with response:
        resumed = response.status == 206
        begin = have if resumed else 0
        missing = int(response.headers["Content-Length"])
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(total=begin + missing, initial=begin, unit="B", unit_scale=True) as bar,
        ):
            while piece := response.read(_PIECE):
                file.write(piece)
                missing -= len(piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    if missing:
        raise ConnectionError(f"the transfer broke {missing} bytes before its end")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.fetch", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("enwik8.zip"))
    parser.add_argument("--url", default=ENWIK8)
    parser.add_argument("--sha256", default=ENWIK8_SHA256)
    options = parser.parse_args(arguments)
    try:
        fetch(options.url, options.out, options.sha256)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
