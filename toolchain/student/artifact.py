"""What is known of a student: its card, which lies beside its weights, and the facts of its training.

    student.json     StudentCard     how it was made and how it has to be asked; carried along when it is quantized
    manifest.json    StudentFacts    the card and what its training took

Training is left out of the card: its seconds differ from run to run, and the card counts for the artifact's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from soloist.kernels.errors import ArtifactError
from soloist.toolchain.core.artifact import Facts
from soloist.toolchain.core.config import describe
from soloist.toolchain.core.files import sha256_file, write_atomic

CARD = "student.json"

Mode = Literal["tools", "cot"]
"""`tools`: the student calls the team's tools; `cot`: it reasons in words, step by step, and writes the answer."""

Variant = Literal["paper", "released"]
"""What a method follows: its paper, or the paper's published code where the two differ."""


class DataFacts(Facts):
    """What a method took from the traces: groups `kept`, runs `rejected` by reason, tokens of the conversations.

    `notes` is what the method says of its own choice beside.
    """

    kept: int
    rejected: Mapping[str, int]
    tokens: int
    trained_tokens: int
    conversations: int
    notes: Mapping[str, JsonValue] = Field(default_factory=dict)


class TrainingFacts(Facts):
    """Totals of one pass of training, in steps, tokens and seconds; `phases` are the passes before it, by name.

    `computed_tokens` are those of the batches, padding and shared beginnings counted as they were computed.
    """

    steps: int
    processes: int
    tokens: int
    trained_tokens: int
    computed_tokens: int
    seconds: float
    tokens_per_second: float | None = None
    trained_tokens_per_second: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    phases: Mapping[str, TrainingFacts] = Field(default_factory=dict)

    @property
    def passes(self) -> tuple[TrainingFacts, ...]:
        """This pass and those before it."""
        return (self, *self.phases.values())


class StudentCard(Facts):
    """How a student was made and how it has to be asked.

    `tools` are those it was trained to call; `context` says that facts of the graph beside it stand before every
    question; `parts` are the folders of a student of several models. `notes` is what its method found out beside.
    """

    method: str
    variant: Variant = "paper"
    options: Mapping[str, JsonValue] = Field(default_factory=dict)
    mode: Mode
    tuning: Literal["full", "lora"]
    base: str
    base_digest: str
    tools: tuple[str, ...] = ()
    precision: str
    precision_reason: str = ""
    data: DataFacts
    context: bool = False
    parts: tuple[str, ...] = ()
    notes: Mapping[str, JsonValue] = Field(default_factory=dict)

    @property
    def called_tools(self) -> tuple[str, ...]:
        """The tools it has to be given; none where it answers in words."""
        return self.tools if self.mode == "tools" else ()

    def write(self, folder: Path) -> None:
        """Write `student.json`, the fields of the card alone."""
        fields = set(StudentCard.model_fields)
        text = self.model_dump_json(include=fields, exclude_none=True, indent=1)
        write_atomic(folder / CARD, text)


class StudentFacts(StudentCard):
    """What stage `distill` writes into its manifest."""

    training: TrainingFacts


def read_card(folder: Path) -> StudentCard:
    """The card of the student in `folder`.

    Raises:
        ArtifactError: there is none, or it is not one that this version writes.
    """
    file = folder / CARD
    try:
        return StudentCard.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: no student of ours (it has no {CARD}); name a student's folder") from error
    except ValidationError as error:
        raise ArtifactError(
            f"{file}: not a student's card of this version ({describe(error)}); distill the student again"
        ) from error


def base_digest(base: Path) -> str:
    """What a model (or a file) is: the hash of the file or of its weights, not where it lies."""
    files = [base] if base.is_file() else sorted([*base.glob("*.safetensors"), *base.glob("config.json")])
    return "+".join(sha256_file(file)[:16] for file in files)
