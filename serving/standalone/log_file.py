"""The log file of a home's platform: its JSON lines, and its rotation.

Processes append to it and keep it open, so it is copied and truncated. Knows no event by name.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """One line: its fields, or `text` alone if a process wrote something else, which belongs to the line before."""

    text: str
    fields: Mapping[str, Any]
    level: str
    at: datetime | None


class LogFile:
    """A file and its older parts, `NAME.1` being the newest of them: together at most `parts` + 1 times the bound."""

    def __init__(self, file: Path, *, parts: int = 3) -> None:
        self._file = file
        self._parts = [file.with_name(f"{file.name}.{number}") for number in range(1, parts + 1)]

    def rotate(self, most_bytes: int) -> bool:
        """Put the content aside if it is larger, and drop the oldest part; return whether it was done.

        Raises:
            OSError: the disk is full, or the folder can't be written; the file stays as it is.
        """
        if not self._file.exists() or self._file.stat().st_size <= most_bytes:
            return False
        draft = self._parts[0].with_name(f".{self._parts[0].name}")
        # A full disk gets the room for the copy from the oldest part.
        self._parts[-1].unlink(missing_ok=True)
        try:
            with self._file.open("rb") as source, draft.open("wb") as copy:
                shutil.copyfileobj(source, copy)
                for older, newer in zip(reversed(self._parts), list(reversed(self._parts))[1:], strict=False):
                    if newer.exists():
                        newer.replace(older)
                # What was written meanwhile.
                shutil.copyfileobj(source, copy)
                os.truncate(self._file, 0)
            draft.replace(self._parts[0])
        finally:
            draft.unlink(missing_ok=True)
        return True

    def read(
        self, *, level: str = "debug", since: datetime | None = None, wait: Callable[[], None] | None = None
    ) -> Iterator[LogLine | None]:
        """Yield the lines of this level or a higher one, oldest first, without those before `since`.

        With `wait`, yield None at the end, call it, and go on with what was appended meanwhile, for ever.

        Raises:
            FileNotFoundError: there is no log.
        """
        kept = _Filter(level, since)
        with self._file.open("rb") as source:
            for part in reversed(self._parts):
                with suppress(FileNotFoundError), part.open("rb") as older:
                    yield from filter(kept, map(_parse, older))
            while True:
                line = source.readline()
                if line.endswith(b"\n") or (line and wait is None):
                    if kept(parsed := _parse(line)):
                        yield parsed
                    continue
                if wait is None:
                    return
                source.seek(-len(line), os.SEEK_CUR)
                yield None
                wait()
                # It was rotated.
                if self._file.stat().st_size < source.tell():
                    source.seek(0)


class _Filter:
    """Whether a line is wanted; one without fields shares the fate of the line before it."""

    def __init__(self, level: str, since: datetime | None) -> None:
        self._levels = LEVELS[LEVELS.index(level) :]
        self._since = since
        self._kept = level == LEVELS[0] and since is None

    def __call__(self, line: LogLine) -> bool:
        if line.at is not None:
            self._kept = line.level in self._levels and (self._since is None or line.at >= self._since)
        return self._kept


def _parse(line: bytes) -> LogLine:
    text = line.decode("utf-8", errors="replace").rstrip("\n")
    with suppress(ValueError, KeyError, TypeError):
        fields = json.loads(text)
        at = datetime.fromisoformat(fields.pop("timestamp"))
        # A level that isn't ours, such as critical, is a grave one.
        level = fields.pop("level")
        return LogLine(text=text, fields=fields, level=level if level in LEVELS else LEVELS[-1], at=at)
    return LogLine(text=text, fields={}, level=LEVELS[-1], at=None)
