"""What a question costs: this machine's hours and watts, or an API's price list.

    local   usd_per_hour * busy_seconds / 3600 / concurrency  +  watts * usd_per_kwh for the same time
    API     the price of each call, then the sum: long-context tiers make the price of summed tokens wrong
    N*      (recording + training + evaluation) / (team - student per question)

What is not known is None and is shown as "n/a" or "unavailable", never as 0. Left out: idle time (a machine
that waits costs its hour too) and any guess at the energy an API uses.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from soloist.targets.base import require
from soloist.toolchain.core.statistics import Interval


@dataclass(frozen=True)
class LocalPrice:
    """What this machine costs, as far as known; `watts` is above idle. `assumed`: from where, if nobody gave it."""

    usd_per_hour: float | None = None
    watts: float | None = None
    usd_per_kwh: float | None = None
    concurrency: int = 1
    assumed: str = ""

    def __post_init__(self) -> None:
        for name in ("usd_per_hour", "watts", "usd_per_kwh"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}: a number from 0 upward is needed")
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}: at least 1 is needed")

    def joules(self, busy_seconds: float) -> float | None:
        """Energy of `busy_seconds`, None without watts."""
        return None if self.watts is None else self.watts * busy_seconds / self.concurrency

    def usd(self, busy_seconds: float) -> float | None:
        """Price of `busy_seconds`: machine plus energy, as far as known; None when neither is."""
        parts = []
        if self.usd_per_hour is not None:
            parts.append(self.usd_per_hour * busy_seconds / 3600 / self.concurrency)
        joules = self.joules(busy_seconds)
        if joules is not None and self.usd_per_kwh is not None:
            parts.append(joules / 3.6e6 * self.usd_per_kwh)
        return sum(parts) if parts else None

    def describe(self) -> str:
        """The prices in words, for the report."""
        if self.assumed:
            return f"{self.assumed}; {self.concurrency} at a time"
        hour = "machine price not given" if self.usd_per_hour is None else f"${self.usd_per_hour:g} per machine hour"
        if self.watts is None:
            energy = "energy unavailable"
        elif self.usd_per_kwh is None:
            energy = f"{self.watts:g} W, price of energy not given"
        else:
            energy = f"{self.watts:g} W at ${self.usd_per_kwh:g} per kWh"
        return f"{hour}; {energy}; {self.concurrency} at a time"


@dataclass(frozen=True)
class ApiCall:
    """Tokens of one call; `tokens_in` holds the cached ones too."""

    tokens_in: int
    tokens_cached: int
    tokens_out: int


@dataclass(frozen=True)
class ApiPrice:
    """How to price an API model: by the `genai-prices` list, or by dollars per million tokens given by hand."""

    model: str
    provider: str | None = None
    usd_per_million: tuple[float, float] | None = None

    def usd(self, calls: Sequence[ApiCall]) -> float | None:
        """Price of the calls, each priced on its own; None for a model that the list does not know."""
        if self.usd_per_million is not None:
            price_in, price_out = self.usd_per_million
            return sum(call.tokens_in * price_in + call.tokens_out * price_out for call in calls) / 1e6
        prices = require("genai_prices", "prices")
        total = 0.0
        for call in calls:
            usage = prices.Usage(
                input_tokens=call.tokens_in, cache_read_tokens=call.tokens_cached, output_tokens=call.tokens_out
            )
            try:
                total += float(prices.calc_price(usage, model_ref=self.model, provider_id=self.provider).total_price)
            except LookupError:
                return None
        return total

    def describe(self) -> str:
        """Source, version and date of the price, for the report."""
        if self.usd_per_million is not None:
            return f"{self.model}: ${self.usd_per_million[0]:g} in, ${self.usd_per_million[1]:g} out per 1M (by hand)"
        prices = require("genai_prices", "prices")
        source = f"genai-prices {importlib.metadata.version('genai-prices')}"
        usage = prices.Usage(input_tokens=0, output_tokens=0)
        try:
            found = prices.calc_price(usage, model_ref=self.model, provider_id=self.provider)
        except LookupError:
            return f"{self.model}: n/a (not in {source}); give a price by hand"
        said = f"{getattr(found.model, 'prices_checked', '')} {getattr(found.model, 'price_comments', '')}"
        dates = re.findall(r"\b20\d\d-\d\d-\d\d\b", said)
        date = f"verified {max(dates)}" if dates else "date not stated"
        return f"{self.model} at {found.provider.id}: {found.model_price} ({source}, {date})"


@dataclass(frozen=True)
class Spend:
    """What was paid once, in dollars, before the student answered its first question. None: unknown."""

    recording: float | None = None
    training: float | None = None
    evaluation: float | None = None

    @classmethod
    def of_seconds(
        cls, price: LocalPrice, *, recording: float | None, training: float | None, evaluation: float | None
    ) -> Spend:
        """The spend of busy seconds on this machine; None where they are not known."""
        spent = [None if seconds is None else price.usd(seconds) for seconds in (recording, training, evaluation)]
        return cls(*spent)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(name for name in ("recording", "training", "evaluation") if getattr(self, name) is None)


@dataclass(frozen=True)
class BreakEven:
    """After how many questions the student has paid for itself; None with the reason where it never does.

    `low` and `high` are its 95 % interval, from that of what a question saves; `high` None: perhaps never.
    """

    questions: int | None
    reason: str
    low: int | None = None
    high: int | None = None


def break_even(
    spend: Spend | None, team_usd: float | None, student_usd: float | None, saved: Interval | None = None
) -> BreakEven:
    """N* from the one-off spend and both prices per question; `saved` is the interval of their difference."""
    if spend is None or spend.unknown:
        missing = "one-off spend" if spend is None else " and ".join(spend.unknown)
        return BreakEven(None, f"not known: no price for {missing}")
    if team_usd is None or student_usd is None:
        return BreakEven(None, "not known: no price per question for " + ("team" if team_usd is None else "student"))
    difference = team_usd - student_usd
    if difference <= 0:
        return BreakEven(None, "never: the student does not cost less per question than the team")
    total = (spend.recording or 0.0) + (spend.training or 0.0) + (spend.evaluation or 0.0)
    reason = f"${total:.4f} spent once, ${1000 * difference:.4f} saved per 1,000 questions"
    if saved is None:
        return BreakEven(math.ceil(total / difference), reason)
    high = math.ceil(total / saved.low) if saved.low > 0 else None
    return BreakEven(math.ceil(total / difference), reason, math.ceil(total / saved.high), high)


@dataclass(frozen=True)
class HostedPrice:
    """What the same tokens would cost at a hosted model, in dollars per million: a comparison, not a bill."""

    usd_in: float = 0.15
    usd_out: float = 0.60
    kind: str = "assumed"

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """The price of so many tokens, cached ones at the full price."""
        return (tokens_in * self.usd_in + tokens_out * self.usd_out) / 1e6

    def describe(self) -> str:
        """The price in words, for the report."""
        return (
            f"{self.kind}: the same tokens at a hosted model for ${self.usd_in:g} per million read and "
            f"${self.usd_out:g} per million written"
        )
