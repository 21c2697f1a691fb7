"""The one event log of a run: JSON lines on disk, and the progress bars drawn from the same events.

An event is `{"time", "stage", "event", ...}`. `event` is "start", "progress" (done, total), "metric",
"note", "warning", "end" or "error". Everything the terminal shows comes through here, so a program
that reads the file sees what a person sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from soloist.toolchain.core.files import append_line, explain_disk_errors

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """Appends events to a file and passes each to its listeners. Usable without a file."""

    def __init__(self, path: Path | None = None, listeners: tuple[Listener, ...] = ()) -> None:
        self._listeners = listeners
        self._file: FileIO | None = None
        if path is not None:
            with explain_disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)

    def emit(self, stage: str, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "stage": stage, "event": event, **fields}
        if self._file is not None:
            with explain_disk_errors(Path(str(self._file.name))):
                append_line(self._file, json.dumps(record, ensure_ascii=False) + "\n")
        for listener in self._listeners:
            listener(record)

    def progress(self, stage: str, done: int, total: int, **fields: Any) -> None:
        self.emit(stage, "progress", done=done, total=total, **fields)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


QUIET = EventLog()
