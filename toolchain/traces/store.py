"""Traces on disk: JSON lines, `.jsonl` while recording, `.jsonl.gz` when sealed.

Recording appends one line per run and syncs it, so a kill loses at most the line being written; opening
the file again cuts a torn last line off and goes on. A torn line in the middle, an alien line or an
unknown field is an error with file and line. A question is kept once, by its text.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from soloist.kernels.errors import DataError
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.files import append_line, explain_disk_errors
from soloist.toolchain.tasks.base import question_key
from soloist.toolchain.traces.schema import SCHEMA, Run


def format_line(run: Run) -> str:
    """One run as one line: defaults left out, the schema version first."""
    body = run.model_dump_json(exclude_defaults=True, by_alias=True)
    return f'{{"schema":{SCHEMA},{body[1:]}\n'


def parse_line(line: str, where: str) -> Run:
    """One line to one run. Raises DataError with `where` and the fields at fault."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); remove the line or record the question again") from error
    if not isinstance(record, dict) or "question" not in record:
        raise DataError(f"{where}: not a Soloist trace (no 'question'); import other formats with `soloist import`")
    if record.get("schema") != SCHEMA:
        raise DataError(f"{where}: schema: this Soloist reads {SCHEMA}, the line says {record.get('schema')}")
    try:
        return Run.model_validate(record)
    except ValidationError as error:
        raise DataError(f"{where}: {describe(error)}") from error


def read_runs(path: Path) -> Iterator[Run]:
    """All runs of a `.jsonl` or `.jsonl.gz` file, validated. Raises DataError with file and line."""
    if not path.is_file():
        raise DataError(f"{path}: no such trace file; record one with `soloist record`")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse_line(line, f"{path}:{number}")
        except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: damaged file ({error}); record it again") from error


class TraceWriter:
    """Appends runs to a `.jsonl` file, one per question text; safe against a kill at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.recovered_bytes = _cut_torn_line(path)
            self._seen = {question_key(run.question.question) for run in read_runs(path)} if path.is_file() else set()
            self._file = path.open("ab", buffering=0)

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, question: str) -> bool:
        return question_key(question) in self._seen

    def add(self, run: Run) -> bool:
        """Append a run and sync it to disk. False if its question is there already."""
        key = question_key(run.question.question)
        if key in self._seen:
            return False
        with explain_disk_errors(self.path):
            append_line(self._file, format_line(run))
            os.fsync(self._file.fileno())
        self._seen.add(key)
        return True

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_runs(runs: Iterable[Run], target: Path) -> int:
    """Write runs to a sealed `.jsonl.gz`, reproducibly (no time stamp), and only when whole; returns how many."""
    temporary = target.with_name(target.name + ".tmp")
    count = 0
    try:
        with explain_disk_errors(target), temporary.open("wb") as raw:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=9) as file:
                for run in runs:
                    file.write(format_line(run).encode())
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _cut_torn_line(path: Path) -> int:
    """Cut an unfinished last line off; returns how many bytes that were."""
    if not path.is_file():
        return 0
    with path.open("rb+") as file:
        data = file.read()
        if not data or data.endswith(b"\n"):
            return 0
        keep = data.rfind(b"\n") + 1
        file.truncate(keep)
        return len(data) - keep
