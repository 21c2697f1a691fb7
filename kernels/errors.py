"""The one exception tree of Soloist. It sits in the lowest layer because every layer raises from it.

    SoloistError               1   anything we can explain in one line
    ├── UsageError             2   a command line or a config that cannot be right
    ├── DataError              3   a trace, question or document that does not fit the schema
    ├── ArtifactError          4   a missing, tampered or foreign artifact or model file
    ├── EngineError            5   a model endpoint or runtime that does not answer as it should
    ├── GateError              6   a compiled file that does not load, or drifts past its tolerance
    ├── ResourceError          7   no disk, memory or device
    └── MissingExtraError      8   an optional dependency that is not installed

The number is the exit code of the process. Only these become one-line messages; anything else is our
bug and keeps its traceback.
"""

from __future__ import annotations


class SoloistError(Exception):
    """An error whose text tells the user what is wrong, where, and what to do."""

    exit_code = 1


class UsageError(SoloistError):
    """A command line or a config that cannot be right."""

    exit_code = 2


class DataError(SoloistError):
    """A trace, question or document that does not fit its schema."""

    exit_code = 3


class ArtifactError(SoloistError):
    """A missing, tampered or foreign artifact or model file."""

    exit_code = 4


class EngineError(SoloistError):
    """A model endpoint or runtime that does not answer as it should."""

    exit_code = 5


class GateError(SoloistError):
    """A compiled file that does not load, or drifts past its tolerance."""

    exit_code = 6


class ResourceError(SoloistError):
    """No disk, memory or device for the work."""

    exit_code = 7


class MissingExtraError(SoloistError):
    """An optional dependency that is not installed."""

    exit_code = 8

    def __init__(self, package: str, extra: str, alone: str | None = None) -> None:
        """`alone`: what pip installs after the extra, without its requirements."""
        then = f", then pip install --no-deps {alone}" if alone else ""
        super().__init__(f"this needs the package '{package}': pip install 'soloist[{extra}]'{then}")
