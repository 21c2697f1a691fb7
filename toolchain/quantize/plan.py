"""A plan: which bits every matrix of a model gets. One file, read by quantization and so by every target.

    schema: 1
    model: {type: llama, digest: 5f0c…}        # the model it was made for; left out: any model
    rules:                                     # the first rule whose pattern fits a matrix's name is its rule
      - {tensors: "*.embed_tokens.weight", bits: 8, rounding: mse}
      - {tensors: "model.layers.0.mlp.down_proj.weight", bits: 5}
      - {tensors: "*", bits: 4}

Names are those of the Hugging Face folder. What bits cost depends on the file: no format has blocks of 32 for all of
them, so integers of 5 and 6 bits travel in the next container that there is (`sizes.py`), values unchanged.
Left out: bits that change inside a matrix.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, JsonValue, model_validator

from soloist.kernels.errors import UsageError
from soloist.toolchain.core.config import Config, load_yaml
from soloist.toolchain.core.files import write_atomic

Bits = Literal[4, 5, 6, 8]
Group = Literal[32, 64, 128]
Rounding = Literal["rtn", "mse", "awq", "gptq"]
FILE = "plan.yaml"
TABLES = ("embed_tokens.weight", "lm_head.weight")
CALIBRATED = ("awq", "gptq")

Shapes = Mapping[str, tuple[int, ...]]


class Rule(Config):
    """Bits, group size and rounding of the matrices whose names fit the pattern `tensors` (`*` fits anything).

    `asymmetric` gives every group a zero point.
    """

    tensors: str
    bits: Bits
    group: Group = 32
    rounding: Rounding = "gptq"
    asymmetric: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Rule:
        if self.asymmetric and self.bits != 4:
            raise ValueError("zero points are for 4 bits")
        return self


class ModelId(Config):
    """The model a plan was made for: its architecture, and a hash of its matrices' names and shapes."""

    type: str
    digest: str


class BitPlan(Config):
    """Rules in order, the model they are for, and what was expected of them (for people; nothing reads it)."""

    version: Literal[1] = Field(default=1, alias="schema")
    model: ModelId | None = None
    rules: tuple[Rule, ...]
    expected: Mapping[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _not_empty(self) -> BitPlan:
        if not self.rules:
            raise ValueError('no rules: give at least one for `tensors: "*"`')
        return self


def table_rounding(rounding: Rounding) -> Rounding:
    """How embedding and head are rounded, whose rows have no input to calibrate on, where layers are by `rounding`."""
    return "rtn" if rounding == "rtn" else "mse"


def uniform(bits: Bits, embedding_bits: Bits, group: Group, rounding: Rounding, *, asymmetric: bool) -> BitPlan:
    """The same bits for all layers, others for embedding and head."""
    of_tables = table_rounding(rounding)
    tables = [Rule(tensors=f"*{name}", bits=embedding_bits, group=group, rounding=of_tables) for name in TABLES]
    layers = Rule(tensors="*", bits=bits, group=group, rounding=rounding, asymmetric=asymmetric)
    return BitPlan(schema=1, rules=(*tables, layers))


def read_plan(path: Path) -> BitPlan:
    """A plan from its file, or from the artifact folder that `soloist plan` made. Raises UsageError."""
    return load_yaml(path / FILE if path.is_dir() else path, BitPlan)


def write_plan(path: Path, plan: BitPlan) -> None:
    """Write it, rules a line each."""
    content = plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    rules = content.pop("rules")
    text = ""
    for key, value in content.items():
        if value != {}:
            text += yaml.safe_dump({key: value}, sort_keys=False)
    text += "rules:\n"
    for rule in rules:
        text += "  - " + yaml.safe_dump(rule, default_flow_style=True, sort_keys=False, width=200).strip() + "\n"
    write_atomic(path, text)


def model_of(architecture: str, shapes: Shapes) -> ModelId:
    """What a plan remembers of the model it was made for."""
    text = json.dumps(sorted(shapes.items()))
    return ModelId(type=architecture, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def resolve(plan: BitPlan, architecture: str, shapes: Shapes, where: str = "plan") -> dict[str, Rule]:
    """The rule of each matrix, its group made one that the matrix's rows can have.

    Args:
        shapes: (N, K) of every matrix that is to be quantized, by name.

    Raises:
        UsageError: a plan for another model, a rule that fits nothing, a matrix without a rule, a table (embedding,
            head) that is to be calibrated.
    """
    if plan.model is not None and plan.model != (this := model_of(architecture, shapes)):
        raise UsageError(
            f"{where}: made for another model ({plan.model.type}, {plan.model.digest}), this one is {this.type}, "
            f"{this.digest}; make a plan for it with `soloist plan`, or take `model` out to use its patterns"
        )
    chosen: dict[str, Rule] = {}
    used: set[int] = set()
    for name, shape in shapes.items():
        for number, rule in enumerate(plan.rules):
            if fnmatch.fnmatchcase(name, rule.tensors):
                used.add(number)
                chosen[name] = _fitting(rule, name, shape, f"{where}: rules.{number}")
                break
        else:
            raise UsageError(f'{where}: no rule fits {name}; end the rules with one for `tensors: "*"`')
    if plan.model is not None or len(plan.rules) > 1:
        _refuse_idle(plan, used, shapes, where)
    return chosen


def _refuse_idle(plan: BitPlan, used: set[int], shapes: Shapes, where: str) -> None:
    """A pattern that fits no matrix is a slip of the pen; one that other rules leave nothing to is not."""
    for number, rule in enumerate(plan.rules):
        is_table = rule.tensors.endswith(TABLES)  # a tied model has no head of its own
        if number not in used and not is_table and not fnmatch.filter(shapes, rule.tensors):
            raise UsageError(f"{where}: rules.{number}: no matrix of this model is called '{rule.tensors}'")


def _fitting(rule: Rule, name: str, shape: Sequence[int], where: str) -> Rule:
    table = name.endswith(TABLES)
    if table and (rule.rounding in CALIBRATED or rule.asymmetric):
        if rule.tensors != "*":
            what = "zero points" if rule.asymmetric else f"rounding {rule.rounding}"
            raise UsageError(f"{where}: {what} cannot be for {name}, whose rows have no input; use mse or rtn")
        rule = rule.model_copy(update={"rounding": "mse", "asymmetric": False})
    if table and shape[1] % rule.group:  # a table is looked up row by row, in whole groups
        rule = rule.model_copy(update={"group": 32})
    return rule
