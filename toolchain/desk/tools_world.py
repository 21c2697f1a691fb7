"""The desk's exact tools on things of daily life: clock times, dates, units, animals' legs.

Clock times have no date: an end before its start lies on the next day, and adding minutes wraps at
midnight. Units are those whose ratio is exact by definition; currencies and temperatures are left out.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from soloist.toolchain.desk.tools_numbers import Number, exact, guarded, schema
from soloist.toolchain.tools.arithmetic import operand, show
from soloist.toolchain.tools.base import Arguments, Result, Tool
from soloist.toolchain.tools.calls import CLOCK, DIGITS

HAS_LEGS, IS = "has legs", "is"  # relations of the facts that `legs` and `convert` look up
DAY = 24 * 60
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CLOCK_GRAMMAR = f'{CLOCK} (" am" | " pm")?'
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::00)?\s*([ap])?\.?(?:m\.?)?", re.IGNORECASE)

# Each unit in the base unit of its kind: meter, gram, second, liter.
UNITS: Mapping[str, Mapping[str, Fraction]] = {
    "length": {
        "mm": Fraction(1, 1000),
        "cm": Fraction(1, 100),
        "m": Fraction(1),
        "km": Fraction(1000),
        "in": Fraction(254, 10000),
        "ft": Fraction(3048, 10000),
        "yd": Fraction(9144, 10000),
        "mi": Fraction(1609344, 1000),
    },
    "mass": {
        "mg": Fraction(1, 1000),
        "g": Fraction(1),
        "kg": Fraction(1000),
        "t": Fraction(1_000_000),
        "oz": Fraction(45359237, 16 * 10**5),
        "lb": Fraction(45359237, 10**5),
    },
    "time": {
        "s": Fraction(1),
        "min": Fraction(60),
        "h": Fraction(3600),
        "day": Fraction(86400),
        "week": Fraction(604800),
    },
    "volume": {"ml": Fraction(1, 1000), "cl": Fraction(1, 100), "dl": Fraction(1, 10), "l": Fraction(1)},
}
_KIND: dict[str, str] = {}  # of each unit
for _kind, _units in UNITS.items():
    _KIND |= dict.fromkeys(_units, _kind)
# A reader copies the unit as the question says it; that is what a small model does well.
UNIT_WORDS: Mapping[str, str] = {
    "millimeters": "mm",
    "centimeters": "cm",
    "meters": "m",
    "kilometers": "km",
    "inches": "in",
    "feet": "ft",
    "yards": "yd",
    "miles": "mi",
    "milligrams": "mg",
    "grams": "g",
    "kilograms": "kg",
    "tonnes": "t",
    "ounces": "oz",
    "pounds": "lb",
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "days": "day",
    "weeks": "week",
    "milliliters": "ml",
    "centiliters": "cl",
    "deciliters": "dl",
    "liters": "l",
}

LEGS: Mapping[str, int] = {
    **dict.fromkeys(("snake", "sea slug", "jellyfish", "flatworm", "leech"), 0),
    **dict.fromkeys(("chicken", "bird", "human", "duck"), 2),
    **dict.fromkeys(("dog", "cat", "cow", "horse", "lion", "elephant", "giraffe", "tiger", "deer", "sheep"), 4),
    "starfish": 5,
    **dict.fromkeys(
        (
            "insect",
            "ant",
            "butterfly",
            "beetle",
            "bee",
            "wasp",
            "grasshopper",
            "cricket",
            "cockroach",
            "praying mantis",
            "firefly",
        ),
        6,
    ),
    **dict.fromkeys(("spider", "scorpion"), 8),
    **dict.fromkeys(("crab", "lobster", "shrimp"), 10),
    "woodlouse": 14,
}
PLURALS: Mapping[str, str] = {  # those that are not the animal with an s
    "sheep": "sheep",
    "deer": "deer",
    "jellyfish": "jellyfish",
    "starfish": "starfish",
    "leech": "leeches",
    "butterfly": "butterflies",
    "firefly": "fireflies",
    "cockroach": "cockroaches",
    "praying mantis": "praying mantises",
    "woodlouse": "woodlice",
    "human": "people",
}
_SINGULARS = {plural: animal for animal, plural in PLURALS.items()}
ANIMAL_GRAMMAR = DIGITS + ' " " (' + " | ".join(f'"{animal}"' for animal in LEGS) + ")"


def minutes_of(text: str) -> int:
    """Minutes after midnight of a clock time, 24-hour or with am/pm. Raises ValueError."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a clock time HH:MM")
    hour, minute, half = int(match[1]), int(match[2]), (match[3] or "").lower()
    if half and not 1 <= hour <= 12:
        raise ValueError(f"'{text}' is not a clock time")
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    if hour > 23:
        raise ValueError(f"'{text}' is not a clock time: hours go to 23")
    return hour * 60 + minute


def clock(minutes: int) -> str:
    """HH:MM, wrapped at midnight."""
    return f"{minutes % DAY // 60:02d}:{minutes % 60:02d}"


def _working(minutes: int) -> str:
    return f"{clock(minutes)} = {minutes // 60} * 60 + {minutes % 60} = {minutes} minutes"


def _between(start: str, end: str) -> Result:
    first, last = minutes_of(start), minutes_of(end)
    steps = [_working(last), _working(first)]
    midnight = " + 1440" if last < first else ""
    span = (last - first) % DAY
    steps.append(f"{last} - {first}{midnight} = {span}")
    steps.append(f"{span} = {span // 60} * 60 + {span % 60}")
    return Result(clock(span), tuple(steps))


def _check_between(arguments: Arguments, value: str) -> bool:
    return (minutes_of(arguments["start"]) + minutes_of(value)) % DAY == minutes_of(arguments["end"])


def _span(text: str) -> int:
    match = re.fullmatch(r"(-?)(?:(\d{1,4}):([0-5]\d)|(\d{1,6}))", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is neither minutes nor HH:MM")
    size = int(match[4]) if match[4] else int(match[2]) * 60 + int(match[3])
    return -size if match[1] else size


def _later(start: str, minutes: str) -> Result:
    first, span = minutes_of(start), _span(str(minutes))
    steps = [_working(first)]
    if ":" in str(minutes):
        steps.append(f"{abs(span)} = {abs(span) // 60} * 60 + {abs(span) % 60}")
    total = first + span
    steps.append(f"{first} {'-' if span < 0 else '+'} {abs(span)} = {total}")
    wrapped = total % DAY
    if wrapped != total:
        days = abs(total // DAY)
        steps.append(f"{total} {'-' if total > 0 else '+'} {days} * 1440 = {wrapped}")
    steps.append(f"{wrapped} = {wrapped // 60} * 60 + {wrapped % 60}")
    return Result(clock(wrapped), tuple(steps))


def _check_later(arguments: Arguments, value: str) -> bool:
    back = datetime.timedelta(minutes=_span(str(arguments["minutes"])))
    end = datetime.datetime(2000, 6, 15) + datetime.timedelta(minutes=minutes_of(value))
    return (end - back).strftime("%H:%M") == clock(minutes_of(arguments["start"]))


_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_DATES = (
    re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"),
    re.compile(r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})"),
    re.compile(r"(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2}),? (?P<year>\d{4})"),
    re.compile(r"(?P<day>\d{1,2}) (?P<month>[a-z]{3,9})\.?,? (?P<year>\d{4})"),
)


def _month(text: str) -> int:
    """Number of a month by its number or the beginning of its name; 0, which no date has, for anything else."""
    if text.isdigit():
        return int(text)
    return next((number for number, name in enumerate(_MONTHS, 1) if name.startswith(text)), 0)


def read_date(text: str) -> datetime.date:
    """2022-10-28, October 28, 2022, 28 Oct 2022, 10/28/2022 (month first). Raises ValueError."""
    for pattern in _DATES:
        match = pattern.fullmatch(text.strip().lower())
        if match is None:
            continue
        return datetime.date(int(match["year"]), _month(match["month"]), int(match["day"]))
    raise ValueError(f"'{text}' is not a date")


def _weekday(date: str) -> Result:
    day = read_date(date)
    years, into = day.year - 2000, day.timetuple().tm_yday - 1
    total = day.toordinal() - datetime.date(2000, 1, 1).toordinal()
    leaps = total - years * 365 - into
    lead = f"{years} * 365 {'-' if leaps < 0 else '+'} {abs(leaps)} + {into}"
    steps = (
        f"days since Saturday 2000-01-01: {lead} = {total}",
        f"{total} = {operand(total // 7)} * 7 + {total % 7}",
        f"Saturday + {total % 7} days: {WEEKDAYS[(5 + total) % 7]}",
    )
    return Result(WEEKDAYS[day.weekday()], steps)


def _check_weekday(arguments: Arguments, value: str) -> bool:
    """Zeller's congruence, which knows nothing of day counts."""
    date = read_date(str(arguments["date"]))
    year, month, day = date.year, date.month, date.day
    if month < 3:
        year, month = year - 1, month + 12
    from_saturday = (day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400) % 7
    return WEEKDAYS[(from_saturday + 5) % 7] == value


def _convert(value: Number, source: str, target: str) -> Result:
    if _KIND[source] != _KIND[target]:
        raise ValueError(f"{source} is a {_KIND[source]}, {target} a {_KIND[target]}")
    units = UNITS[_KIND[source]]
    amount, ratio = exact(value), units[source] / units[target]
    result = amount * ratio
    if ratio >= 1:
        steps = (f"1 {source} is {show(ratio)} {target}", f"{show(amount)} * {operand(ratio)} = {show(result)}")
    else:
        steps = (f"1 {target} is {show(1 / ratio)} {source}", f"{show(amount)} / {operand(1 / ratio)} = {show(result)}")
    return Result(show(result), steps)


_UNIT_STEP = re.compile(r"1 ([a-z]+) is ([\d./]+ [a-z]+)")


def _unit_facts(steps: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for step in steps:
        match = _UNIT_STEP.fullmatch(step)
        if match and match[2] != f"1 {match[1]}":  # that a unit is itself is no fact
            yield match[1], IS, match[2]


def _convert_call(**arguments: object) -> Result:
    value, source, target = arguments["value"], arguments["from"], arguments["to"]
    if not isinstance(value, int | float) or not isinstance(source, str) or not isinstance(target, str):
        raise ValueError("needs a number and two units")
    return _convert(value, _unit(source), _unit(target))


def _unit(name: str) -> str:
    return UNIT_WORDS.get(name, name)


def _check_convert(arguments: Arguments, value: str) -> bool:
    """Back again: the answer in base units is the question in base units."""
    source, target = _unit(str(arguments["from"])), _unit(str(arguments["to"]))
    back = Fraction(value) * UNITS[_KIND[target]][target]
    return bool(back == exact(arguments["value"]) * UNITS[_KIND[source]][source])


def _animal(item: str) -> tuple[int, str]:
    match = re.fullmatch(r"\s*(\d{1,6})\s+([a-z ]+?)\s*", item.lower())
    if match is None:
        raise ValueError(f"'{item}' is not a count and an animal")
    name = _SINGULARS.get(match[2], match[2])
    name = name if name in LEGS else name.removesuffix("s")
    if name not in LEGS:
        raise ValueError(f"no animal '{match[2]}'")
    return int(match[1]), name


def _legs(animals: Sequence[str]) -> Result:
    steps, parts = [], []
    for count, name in map(_animal, animals):
        parts.append(count * LEGS[name])
        steps.append(f"{name}: {count} * {LEGS[name]} = {parts[-1]}")
    if len(parts) > 1:
        steps.append(" + ".join(map(str, parts)) + f" = {sum(parts)}")
    return Result(str(sum(parts)), tuple(steps))


_LEGS_STEP = re.compile(r"([a-z ]+): \d+ \* (\d+) = \d+")


def _leg_facts(steps: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for step in steps:
        if match := _LEGS_STEP.fullmatch(step):
            yield match[1], HAS_LEGS, match[2]


def _check_legs(arguments: Arguments, value: str) -> bool:
    """Count by leg number first: how many animals have none, two, four and so on."""
    herd = dict.fromkeys(LEGS.values(), 0)
    for count, name in map(_animal, arguments["animals"]):
        herd[LEGS[name]] += count
    return sum(legs * count for legs, count in herd.items()) == int(value)


def world_tools() -> list[Tool]:
    """The tools of this module."""
    word, time = {"type": "string"}, {"type": "string", "x-grammar": CLOCK_GRAMMAR}
    span = {**word, "x-grammar": f'"-"? {DIGITS} (":" [0-5] [0-9])?'}
    date = {**word, "x-grammar": "[A-Za-z0-9] [A-Za-z0-9 ,/-]+"}
    unit: dict[str, Any] = {"type": "string", "enum": [*UNIT_WORDS, *_KIND]}
    animals = {"type": "array", "items": {**word, "x-grammar": ANIMAL_GRAMMAR}, "minItems": 1}
    return [
        Tool(
            "between",
            "Time from one clock time to the next, as HH:MM.",
            schema(start=time, end=time),
            _between,
            guarded(_check_between),
        ),
        Tool(
            "later",
            "Clock time so many minutes (or HH:MM) after a clock time; negative means before.",
            schema(start=time, minutes=span),
            _later,
            guarded(_check_later),
        ),
        Tool("weekday", "Day of the week of a date.", schema(date=date), _weekday, guarded(_check_weekday)),
        Tool(
            "convert",
            "Convert between units of length, mass, time or volume.",
            schema(value={"type": "number"}, **{"from": unit, "to": unit}),
            _convert_call,
            guarded(_check_convert),
            _unit_facts,
        ),
        Tool("legs", "Count the legs of animals.", schema(animals=animals), _legs, guarded(_check_legs), _leg_facts),
    ]
