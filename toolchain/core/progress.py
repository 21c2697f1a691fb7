"""The terminal's view of the event log: one progress bar per stage, drawn with rich from the events alone."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

NAMES = {
    "record": "record the team",
    "distill": "distill the student",
    "export": "compile and check",
    "plan": "plan the widths",
    "quantize": "quantize the student",
    "qat": "train through the rounding",
    "kernels": "compile the kernels",
    "assess": "ask whether to distill",
    "bench": "measure side by side",
    "report": "write the report",
}


class Bars:
    """A listener for EventLog. Use as a context manager; without a terminal it prints a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        stage, kind = event["stage"], event["event"]
        if kind == "start":
            self._task(stage)
            self._line(f"{NAMES.get(stage, stage)} …")
        elif kind == "progress":
            self._progress(event)
        elif kind == "metric" and "loss" in event:
            self._bars.update(self._task(stage), note=f"loss {event['loss']:.3f}")
        elif kind in ("note", "warning"):
            self._note(event)
        elif kind == "end":
            self._end(event)

    def _task(self, stage: str) -> TaskID:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(NAMES.get(stage, stage), total=None, note="")
        return self._tasks[stage]

    def _progress(self, event: dict[str, Any]) -> None:
        stage, done, total = event["stage"], event["done"], event["total"]
        note = str(event.get("format") or event.get("system") or "")
        self._bars.update(self._task(stage), completed=done, total=total)
        if note:
            self._bars.update(self._task(stage), note=note)
        tenth = 10 * done // max(1, total)
        if tenth > self._said.get(stage, 0):
            self._said[stage] = tenth
            self._line(f"{NAMES.get(stage, stage)}: {done} of {total}")

    def _note(self, event: dict[str, Any]) -> None:
        text = str(event.get("text", ""))
        self._bars.update(self._task(event["stage"]), note=text[:60])
        if event["event"] == "warning":
            self.console.print(f"warning: {text}", style="yellow", markup=False)
        else:
            self._line(text)

    def _end(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        task = self._task(stage)
        total = self._bars.tasks[self._bars.task_ids.index(task)].total or 1
        note = "was there already" if event.get("reused") else ""
        self._bars.update(task, completed=total, total=total, note=note)
        self._line(f"{NAMES.get(stage, stage)}: done{', ' + note if note else ''}")

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False)
