"""How every process of the platform logs: JSON lines with ids and never text, each written as soon as it is said.

Lines go to the file of the setting, or to the process's own standard error: not to what Ray Serve puts in its place in
a replica, which keeps a thousand lines back under load and is no JSON.
"""

import logging
import os
import sys
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog
from structlog.types import EventDict

# The request that the present task works for. A batch works for many, so its task has none.
REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("valence_request", default=None)


class _Lossy:
    """A stream that loses what it can't write: a full disk must not end whoever logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure_logging(
    level: str, *, process: str, file: Path | None = None, replica: str | None = None
) -> None:
    """Set the threshold, the shape and the place of every line of this process.

    `process` says what it is (ingress, encoder, control, evaluation …), `replica` which of them. What libraries warn
    of goes the same way.
    """
    said = {"process": process, "pid": os.getpid()} | ({"replica": replica} if replica else {})

    def stamp(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if (request_id := REQUEST_ID.get()) is not None:
            event.setdefault("request_id", request_id)
        return {**said, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            stamp,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Lossy(_opened(file)))),
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _Libraries)] + [_Libraries()]


def _opened(file: Path | None) -> TextIO:
    """Appended to, so that many processes share it line by line; a copy-and-truncate rotation does no harm."""
    if file is not None:
        try:
            return file.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"valence: {file} can't be written, lines go to standard error: {error}\n")
    return sys.__stderr__ or sys.stderr


class _Libraries(logging.Handler):
    """What a library logs by the standard library at level warning and above, as a line of ours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        log = structlog.get_logger(record.name)
        (log.error if record.levelno >= logging.ERROR else log.warning)(
            "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info or None
        )
