"""The log of every process of the platform: JSON lines with ids and never text, each written at once.

Lines go to the file of the setting, else to the original standard error of the process. Ray Serve replaces standard
error in a replica by a stream that holds back a thousand lines under load and isn't JSON.
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

# The request that the present task serves. The task of a batch serves many, so it has none.
REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("valence_request", default=None)


class _Lossy:
    """A stream that drops what it can't write, because a full disk must not end the process that logs."""

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
    """Set the threshold, the format and the destination of every line of this process, warnings of libraries included.

    `process` names the kind of the process (ingress, encoder, control, evaluation …), `replica` the replica.
    """
    fields = {"process": process, "pid": os.getpid()} | ({"replica": replica} if replica else {})

    def stamp(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if (request_id := REQUEST_ID.get()) is not None:
            event.setdefault("request_id", request_id)
        return {**fields, **event}

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
    """Open the file for appending: processes share it line by line, and it may be copied and truncated meanwhile."""
    if file is not None:
        try:
            return file.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"valence: {file} can't be written, lines go to standard error: {error}\n")
    return sys.__stderr__ or sys.stderr


class _Libraries(logging.Handler):
    """Writes what libraries log at level warning and above as JSON lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        log = structlog.get_logger(record.name)
        (log.error if record.levelno >= logging.ERROR else log.warning)(
            "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info or None
        )
