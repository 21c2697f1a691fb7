import datetime
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.desk.tools_numbers import binary_gcd
from soloist.toolchain.desk.tools_world import ANIMAL_GRAMMAR, LEGS, UNITS
from soloist.toolchain.tools.arithmetic import check_steps, equalities
from soloist.toolchain.tools.base import ToolError
from soloist.toolchain.tools.calls import parse_call, run_call

TOOLS = desk_tools()

KNOWN = [
    ("solve(3*x + 4 = 19)", "5"),
    ("solve(19 - 3*x = 4 + 2*x)", "3"),
    ("solve(2*z + 1 = 4)", "1.5"),
    ("solve(3(a - 2) = 7)", "13/3"),
    ("solve(5 - b = 9)", "-4"),
    ("solve(0.5*y = 4)", "8"),
    ("calc(2 + 3 * 4)", "14"),
    ("calc((2 + 3) * -4)", "-20"),
    ("calc(0.1 + 0.2)", "0.3"),
    ("calc(10 / 4)", "2.5"),
    ("calc(10 / 3)", "10/3"),
    ("percent(15 | 80)", "12"),
    ("percent(2.5 | 300)", "7.5"),
    ("sort(asc | 9, -3, 5)", "-3, 5, 9"),
    ("sort(desc | 1.5, 1, 1.25)", "1.5, 1.25, 1"),
    ("filter(keep | larger | 15 | 15, 24, 3)", "24"),
    ("filter(remove | larger | 15 | 15, 24, 3)", "15, 3"),
    ("filter(keep | smaller | 1 | 2, 3)", "none"),
    ("simplify(18/48)", "3/8"),
    ("simplify(-6/4)", "-3/2"),
    ("simplify(8/4)", "2/1"),
    ("gcd(12, 18, 27)", "3"),
    ("lcm(4, 6, 10)", "60"),
    ("base(ff | 16 | 10)", "255"),
    ("base(77 | 10 | 2)", "1001101"),
    ("base(0 | 10 | 7)", "0"),
    ("primes(10 | 50)", "11"),
    ("primes(0 | 2)", "1"),
    ("primes(24 | 28)", "0"),
    ("between(09:10 | 17:25)", "08:15"),
    ("between(23:10 | 1:05)", "01:55"),
    ("between(8:30 am | 6:15 pm)", "09:45"),
    ("between(12:00 am | 12:00 pm)", "12:00"),
    ("later(18:54 | 95)", "20:29"),
    ("later(23:50 | 02:20)", "02:10"),
    ("later(00:10 | -30)", "23:40"),
    ("weekday(2022-10-28)", "Friday"),
    ("weekday(1969-07-20)", "Sunday"),
    ("weekday(2000-02-29)", "Tuesday"),
    ("convert(3.5 | kg | g)", "3500"),
    ("convert(250 | g | kg)", "0.25"),
    ("convert(1 | mi | km)", "1.609344"),
    ("convert(90 | min | h)", "1.5"),
    ("legs(3 cat, 2 spider)", "28"),
    ("legs(1 sea slug, 2 praying mantis)", "12"),
    ("legs(2 woodlice, 1 people)", "30"),
]


@pytest.mark.parametrize(("text", "value"), KNOWN)
def test_known_answer_with_true_steps_and_a_check_that_can_say_no(text, value):
    call = parse_call(text, TOOLS)
    result = run_call(call, TOOLS)
    assert result.value == value
    assert check_steps("\n".join(result.steps)), result.steps
    check = TOOLS[call.name].check
    assert check(call.arguments, value)
    for wrong in ("1234567", "17:01", "Noday", "999/997", "", "12, 99"):
        assert not check(call.arguments, wrong)


def test_every_tool_has_known_answers_a_check_and_a_full_schema():
    assert {text.split("(")[0] for text, _ in KNOWN} == set(TOOLS.tools)
    assert len(TOOLS) >= 12
    for tool in TOOLS:
        assert tool.check is not None
        assert tool.parameters["required"] == list(tool.parameters["properties"])


@pytest.mark.parametrize(
    "name",
    ["solve", "calc", "percent", "simplify", "gcd", "lcm", "base", "between", "later", "weekday", "convert", "legs"],
)
def test_steps_can_be_judged(name):
    """Tools that compute show equalities; sort, filter and primes show lists."""
    shown = [run_call(parse_call(text, TOOLS), TOOLS).steps for text, _ in KNOWN if text.startswith(name + "(")]
    assert any(list(equalities("\n".join(steps))) for steps in shown)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("solve(3*x + 4)", "exactly one '='"),
        ("solve(x = y)", "exactly one variable"),
        ("solve(x = x)", "every number"),
        ("solve(x = x + 1)", "no number"),
        ("solve(x*x = 4)", "not linear"),
        ("calc(1 / (2 - 2))", "division by zero"),
        ("calc(2 ** 3)", "expected a number"),
        ("simplify(3/0)", "denominator is zero"),
        ("simplify(3)", "not a fraction"),
        ("gcd(0, 4)", "outside 1 to"),
        ("lcm(3, 9999999999999)", "outside 1 to"),
        ("base(19 | 8 | 2)", "not a number in base 8"),
        ("base(19 | 40 | 2)", "base 40"),
        ("primes(1 | 99999999)", "high <="),
        ("primes(9 | 3)", "low <= high"),
        ("between(25:00 | 03:00)", "hours go to 23"),
        ("between(13:00 pm | 03:00)", "not a clock time"),
        ("between(noon | 03:00)", "not a clock time"),
        ("later(09:00 | soon)", "neither minutes"),
        ("weekday(2022-02-30)", "day is out of range|day 30"),
        ("convert(3 | kg | m)", "kg is a mass"),
        ("legs(3 unicorn)", "no animal 'unicorn'"),
        ("legs(cat)", "not a count and an animal"),
    ],
)
def test_arguments_that_make_no_sense_are_tool_errors(text, reason):
    with pytest.raises(ToolError, match=reason):
        run_call(parse_call(text, TOOLS), TOOLS)


WHOLE = st.integers(-99, 99)


@settings(deadline=None)
@given(WHOLE.filter(bool), WHOLE, WHOLE, st.sampled_from("abxyz"))
def test_solution_satisfies_the_equation(a, b, c, name):
    equation = f"{a}*{name} {'-' if b < 0 else '+'} {abs(b)} = {c}"
    result = TOOLS["solve"].run({"equation": equation})
    value = Fraction(result.value)
    assert a * value + b == c
    assert check_steps("\n".join(result.steps))
    assert TOOLS["solve"].check({"equation": equation}, result.value)
    assert not TOOLS["solve"].check({"equation": equation}, str(value + 1))


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=2, max_size=4))
def test_divisors_agree_with_math(numbers):
    assert int(TOOLS["gcd"].run({"numbers": numbers}).value) == math.gcd(*numbers)
    assert int(TOOLS["lcm"].run({"numbers": numbers}).value) == math.lcm(*numbers)
    assert binary_gcd(numbers[0], numbers[1]) == math.gcd(numbers[0], numbers[1])
    assert TOOLS["gcd"].check({"numbers": numbers}, str(math.gcd(*numbers)))
    assert TOOLS["lcm"].check({"numbers": numbers}, str(math.lcm(*numbers)))
    assert not TOOLS["lcm"].check({"numbers": numbers}, str(2 * math.lcm(*numbers)))


@settings(deadline=None)
@given(st.dates(min_value=datetime.date(1600, 1, 1)))
def test_weekday_and_its_check_agree(day):
    result = TOOLS["weekday"].run({"date": day.isoformat()})
    assert result.value == day.strftime("%A")
    assert TOOLS["weekday"].check({"date": day.isoformat()}, result.value)
    assert result.steps[-1].endswith(result.value)
    assert check_steps("\n".join(result.steps))


@settings(deadline=None)
@given(st.times(), st.integers(-3000, 3000))
def test_later_and_between_undo_each_other(start, minutes):
    begin = start.strftime("%H:%M")
    result = TOOLS["later"].run({"start": begin, "minutes": str(minutes)})
    assert check_steps("\n".join(result.steps))
    assert TOOLS["later"].check({"start": begin, "minutes": str(minutes)}, result.value)
    span = TOOLS["between"].run({"start": begin, "end": result.value}).value
    assert int(span[:2]) * 60 + int(span[3:]) == minutes % 1440


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 36), st.integers(2, 36))
def test_bases_round_trip(value, source, target):
    written = TOOLS["base"].run({"number": str(value), "from": 10, "to": source}).value
    assert int(written, source) == value
    there = TOOLS["base"].run({"number": written, "from": source, "to": target}).value
    assert int(there, target) == value


@settings(deadline=None)
@given(st.data())
def test_conversion_round_trips_exactly(data):
    units = data.draw(st.sampled_from([list(u) for u in UNITS.values()]))
    source, target = data.draw(st.sampled_from(units)), data.draw(st.sampled_from(units))
    amount = data.draw(st.integers(0, 10**6)) / 100
    arguments = {"value": amount, "from": source, "to": target}
    result = TOOLS["convert"].run(arguments)
    assert TOOLS["convert"].check(arguments, result.value)
    assert check_steps("\n".join(result.steps))


def test_legs_are_those_of_reasoning_gym():
    leg_counting = pytest.importorskip("reasoning_gym.arithmetic.leg_counting", reason="needs the extra 'desk'")
    assert dict(LEGS) == leg_counting.ANIMALS
    assert all(f'"{animal}"' in ANIMAL_GRAMMAR for animal in LEGS)
