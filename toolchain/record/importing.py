"""Stage `import`: traces that others recorded, read into our schema.

    traces.jsonl.gz   one run a line, as `soloist record` writes it; `soloist distill` takes either

A file that cannot be read, or is of no known format, stops the import: all such files are named at once. A
record that cannot be kept is counted with its reason, and the rest goes on. Of runs with the same question
text the first is kept.

Questions that belong to a benchmark's test set carry its name and split `test`, which no training accepts.
`train_on_test` imports them as training questions all the same; the manifest keeps saying whose they are
(`ImportFacts.benchmarks`), and the report refuses to quote that benchmark for any student that comes from them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from soloist.kernels.errors import DataError, UsageError
from soloist.toolchain.core.artifact import Artifact, Facts, stage
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.events import QUIET, EventLog
from soloist.toolchain.core.files import sha256_file
from soloist.toolchain.record.importers import agentark, du, dylan, fireact, magdi, who_and_when
from soloist.toolchain.record.importers.base import MOST_PLACES, Document, Importer, Reading, Tally, load_document
from soloist.toolchain.tasks.base import question_key
from soloist.toolchain.traces.recording import IMPORT, TRACES, TraceFacts, summarize
from soloist.toolchain.traces.schema import Run
from soloist.toolchain.traces.store import format_line, write_runs

IMPORTERS: Mapping[str, Importer] = {
    module.IMPORTER.name: module.IMPORTER for module in (dylan, du, agentark, magdi, who_and_when, fireact)
}
_SEARCHED = (".json", ".jsonl", ".p", ".pkl", ".pickle")  # pickles to refuse them


class FormatCounts(Facts):
    """Of one format: records kept, and how many were repaired, refused or noted, by reason."""

    kept: int
    repaired: dict[str, int]
    refused: dict[str, int]
    noted: dict[str, int]


class ImportFacts(TraceFacts):
    """What was imported, beside what traces hold: verdicts and edges by kind, counts by format, where from."""

    verdicts: dict[str, int]
    turn_verdicts: dict[str, int]
    edges: dict[str, int]
    formats: dict[str, FormatCounts]
    refused_at: list[str]
    files: int
    origins: list[str]


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about the files: format, questions (DyLAN's MMLU), whose test questions they are."""

    format: str = "auto"
    questions: Path | None = None
    benchmark: str | None = None
    train_on_test: bool = False


def find_files(paths: Sequence[Path], options: ImportOptions) -> list[Path]:
    """The files to read: those named, and of a folder its JSON files, and pickles so that they are refused by name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in _SEARCHED]
            if not inside:
                raise DataError(f"{path}: no .json or .jsonl file in it; name the files, or another folder")
            files += [file for file in inside if not _holds_questions(file, options)]
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the name")
    return list(dict.fromkeys(files))


def _holds_questions(file: Path, options: ImportOptions) -> bool:
    """Whether a file is what --questions names, or in the folder that it names."""
    if options.questions is None:
        return False
    questions = options.questions.resolve()
    return questions in (file.resolve(), *file.resolve().parents)


def detect(document: Document) -> Importer:
    """The format that most records of a file are of. Raises DataError where there is none, or are two."""
    counts = {importer.name: importer.fits(document) for importer in IMPORTERS.values()}
    most = max(counts.values())
    names = [name for name, count in counts.items() if count == most]
    if most and len(names) == 1:
        return IMPORTERS[names[0]]
    if most:
        raise DataError(f"{document.path}: looks like {' and '.join(names)}; say which with --format")
    raise DataError(
        f"{document.path}: no trace format that is known ({', '.join(IMPORTERS)}); leave it out, or force --format"
    )


def import_traces(
    paths: Sequence[Path], out: Path, options: ImportOptions | None = None, *, events: EventLog = QUIET
) -> Artifact:
    """Read files of other programs' traces into one artifact.

    Raises:
        UsageError: an unknown format, or no file.
        DataError: files that cannot be read (all of them, a line each), or not one record kept.
    """
    options = options or ImportOptions()
    if options.format != "auto" and options.format not in IMPORTERS:
        raise UsageError(f"--format {options.format}: unknown; there are auto, {', '.join(IMPORTERS)}")
    files = find_files(paths, options)
    if not files:
        raise UsageError("no file to import: name at least one")
    readings = _open_all(files, options)

    def build(folder: Path) -> ImportFacts:
        runs = _all_runs(readings, options, events)
        write_runs(runs, folder / TRACES)
        return _facts(runs, readings)

    plan = {
        "files": [{"name": file.name, "sha256": sha256_file(file)} for file in files],
        "format": options.format,
        "questions": _hash_questions(options.questions),
        "benchmark": options.benchmark,
        "train_on_test": options.train_on_test,
    }
    return stage(IMPORT, out, plan, [], build, events=events)


def _open_all(files: Sequence[Path], options: ImportOptions) -> list[tuple[Importer, Reading]]:
    """Every file read, recognized and checked; the faults of all files in one error."""
    readings, faults = [], []
    for file in files:
        try:
            document = load_document(file)
            importer = detect(document) if options.format == "auto" else IMPORTERS[options.format]
            reading = Reading(document, importer.origin, benchmark=options.benchmark, questions=options.questions)
            importer.check(reading)
        except DataError as error:
            faults.append(str(error))
        else:
            readings.append((importer, reading))
    if faults:
        more = len(faults) - MOST_PLACES
        raise DataError("\n".join(faults[:MOST_PLACES] + ([f"... and {more} more files"] if more > 0 else [])))
    return readings


def _all_runs(readings: Sequence[tuple[Importer, Reading]], options: ImportOptions, events: EventLog) -> list[Run]:
    runs: list[Run] = []
    seen: set[str] = set()
    for done, (importer, reading) in enumerate(readings, 1):
        tally, path = reading.tally, reading.document.path
        for where, reason in reading.document.broken:
            tally.refuse(f"{path}: {where}", reason)
        for row in importer.rows(reading.document):
            place = f"{path}: {row.where}"
            try:
                run = importer.convert(row, reading)
                format_line(run)
            except DataError as error:
                tally.refuse(place, str(error))
            except ValidationError as error:
                tally.refuse(place, f"does not fit the schema ({describe(error)})")
            except ValueError:  # half of a surrogate pair: it cannot be written as UTF-8
                tally.refuse(place, "a text that is no Unicode")
            else:
                if question_key(run.question.question) in seen:
                    tally.refuse(place, "the same question stands before")
                    continue
                seen.add(question_key(run.question.question))
                tally.kept += 1
                runs.append(_for_training(run) if options.train_on_test else run)
        events.progress(IMPORT, done, len(readings), file=path.name)
    if not runs:
        raise DataError("not one record could be kept:\n" + "\n".join(_places(readings)))
    return runs


def _for_training(run: Run) -> Run:
    return run.model_copy(update={"question": run.question.model_copy(update={"split": "train"})})


def _places(readings: Sequence[tuple[Importer, Reading]]) -> list[str]:
    places: list[str] = []
    for _, reading in readings:
        places += reading.tally.places
    return places[:MOST_PLACES]


def _facts(runs: Sequence[Run], readings: Sequence[tuple[Importer, Reading]]) -> ImportFacts:
    formats: dict[str, Tally] = {}
    for importer, reading in readings:
        total = formats.setdefault(importer.name, Tally())
        total.kept += reading.tally.kept
        for name in ("repaired", "refused", "noted"):
            getattr(total, name).update(getattr(reading.tally, name))
    counts = {}
    for name, tally in formats.items():
        noted = {reason: count for reason, count in tally.noted.items() if count}
        counts[name] = FormatCounts(kept=tally.kept, repaired=tally.repaired, refused=tally.refused, noted=noted)
    verdicts, turn_verdicts, edges = Counter[str](), Counter[str](), Counter[str]()
    for run in runs:
        verdicts[run.verdict] += 1
        turn_verdicts.update(turn.verdict for turn in run.turns)
        edges.update(edge.kind for edge in run.edges)
    return ImportFacts(
        **dict(summarize(runs)),
        verdicts=verdicts,
        turn_verdicts=turn_verdicts,
        edges=edges,
        formats=counts,
        refused_at=_places(readings),
        files=len(readings),
        origins=sorted({importer.origin for importer, _ in readings}),
    )


def _hash_questions(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.exists():
        raise DataError(f"{path}: no such question file; check --questions")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    names = json.dumps([[file.name, sha256_file(file)] for file in files])
    return hashlib.sha256(names.encode()).hexdigest()[:16]
