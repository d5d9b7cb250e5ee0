"""What the command lines of this package share: a parser that refuses in one line, and kinds of
arguments."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from train.limits import Range


class Parser(argparse.ArgumentParser):
    """Refuses in one line, without the list of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}; --help tells more\n")


def path_text(text: str) -> str:
    # a variable of the shell that is not set, and nothing else: "" would be this directory
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def within(kind: type[int] | type[float], allowed: Range) -> Callable[[str], float]:
    """A number of that kind in that range."""

    def number(text: str) -> float:
        value = kind(text)
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {value}")
        return value

    number.__name__ = kind.__name__  # argparse puts it into its words
    return number
