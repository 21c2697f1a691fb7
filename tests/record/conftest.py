"""Files of other programs, made up here; and an import that hands back runs, facts and the artifact."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from soloist.toolchain.record.importing import ImportFacts, ImportOptions, import_traces
from soloist.toolchain.traces.recording import TRACES
from soloist.toolchain.traces.store import read_runs


@pytest.fixture
def write(tmp_path):
    """Write a file: text as it is, rows as JSON lines, anything else as one JSON value."""

    def put(name, content, *, lines=False):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif lines:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return put


@pytest.fixture
def load(tmp_path):
    """Import files; the runs in order, the facts, and the counts of their only format."""

    def call(*paths, **options):
        out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        artifact = import_traces(paths, out, ImportOptions(**options))
        runs = list(read_runs(out / TRACES))
        facts = artifact.read(ImportFacts)
        name, counts = next(iter(facts.formats.items()))
        return SimpleNamespace(runs=runs, run=runs[0], facts=facts, format=name, counts=counts, artifact=artifact)

    return call


def _edges(run, kind):
    return [(edge.source, edge.target) for edge in run.edges if edge.kind == kind]


@pytest.fixture
def edges():
    """The edges of a kind, as pairs."""
    return _edges
