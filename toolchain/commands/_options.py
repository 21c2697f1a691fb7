"""What several commands read the same way: KEY=VALUE pairs of `--set`, and prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from soloist.kernels.errors import UsageError

if TYPE_CHECKING:
    from soloist.toolchain.bench.cost import LocalPrice


def method_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Values as YAML would read them. Raises UsageError."""
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: expected KEY=VALUE")
        if key in options:
            raise UsageError(f"--set {key}: given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return options


def token_price(text: str | None) -> tuple[float, float] | None:
    """Dollars per million tokens, read and written, from `IN,OUT`. Raises UsageError."""
    if text is None:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--api-price: expected two numbers as IN,OUT, got '{text}'") from None
    return price_in, price_out


def local_price(usd_per_hour: float | None, watts: float | None, usd_per_kwh: float | None) -> LocalPrice:
    """What this machine costs: as given, and where nothing is given as assumed for the device it is taken for.

    Raises:
        UsageError: a price that is no price.
    """
    from soloist.targets.devices.here import this_machine
    from soloist.toolchain.bench.cost import LocalPrice

    try:
        if usd_per_hour is None and watts is None and usd_per_kwh is None:
            here = this_machine()
            return LocalPrice(here.usd_per_hour, here.watts, here.usd_per_kwh, assumed=here.assumptions)
        return LocalPrice(usd_per_hour, watts, usd_per_kwh)
    except ValueError as error:
        raise UsageError(f"price of this machine: {error}") from error
