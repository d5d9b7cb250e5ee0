"""How log records look: lines for people, or JSON, an object a line, for machines.

A record's extra fields are keys of the object, or follow the message as key=value.
"""

import logging
import time

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from server.settings import Settings

_NOT_EXTRA = (*RESERVED_ATTRS, "color_message")
"""uvicorn has a second message for terminals."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in _NOT_EXTRA}
        fields = (f" {key}={_plain(value)}" for key, value in extra.items() if value is not None)
        return super().formatMessage(record) + "".join(fields)


def _plain(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(text) if any(c.isspace() or not c.isprintable() for c in text) else text


def configure(settings: Settings) -> None:
    """Sets up the root logger of this process; all records go to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _formatter(style: str) -> logging.Formatter:
    if style == "console":
        return _Lines(_FORMAT)
    formatter = JsonFormatter(
        _FORMAT,
        reserved_attrs=_NOT_EXTRA,
        datefmt="%Y-%m-%dT%H:%M:%SZ",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
    )
    formatter.converter = time.gmtime
    return formatter
