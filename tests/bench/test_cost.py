import math

import pytest

from soloist.toolchain.bench.cost import ApiCall, ApiPrice, BreakEven, HostedPrice, LocalPrice, Spend, break_even
from soloist.toolchain.core.statistics import Interval


def test_local_price_adds_machine_and_energy():
    price = LocalPrice(usd_per_hour=0.36, watts=100, usd_per_kwh=0.36, concurrency=1)
    # One hour: 0.36 for the machine, 0.1 kWh at 0.36.
    assert math.isclose(price.usd(3600), 0.36 + 0.036)
    assert price.joules(10) == 1000


def test_local_price_is_shared_by_those_served_at_once():
    assert math.isclose(LocalPrice(usd_per_hour=3.6, concurrency=4).usd(1000), 0.25)


def test_local_price_is_unknown_rather_than_zero():
    assert LocalPrice().usd(10) is None
    assert LocalPrice(watts=20).usd(10) is None
    assert LocalPrice(usd_per_hour=1).joules(10) is None
    assert "energy unavailable" in LocalPrice(usd_per_hour=1).describe()
    assert "machine price not given" in LocalPrice().describe()


@pytest.mark.parametrize("bad", [{"usd_per_hour": -1}, {"watts": math.nan}, {"concurrency": 0}])
def test_local_price_refuses_nonsense(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LocalPrice(**bad)


def test_api_price_by_hand():
    price = ApiPrice("anything", usd_per_million=(1.0, 4.0))
    assert math.isclose(price.usd([ApiCall(1000, 0, 100), ApiCall(500, 0, 0)]), 0.0019)
    assert "by hand" in price.describe()


def test_api_price_from_the_list():
    pytest.importorskip("genai_prices", reason="the extra 'prices' is not installed")
    price = ApiPrice("gpt-4o-mini", provider="openai")
    # 300 fresh tokens at 0.15, 512 cached at 0.075, 143 out at 0.60 dollars per million.
    assert math.isclose(price.usd([ApiCall(812, 512, 143)]), 0.0001692)
    said = price.describe()
    assert "genai-prices" in said
    assert "openai" in said
    assert "verified 20" in said or "date not stated" in said


def test_api_price_is_taken_call_by_call():
    prices = pytest.importorskip("genai_prices", reason="the extra 'prices' is not installed")
    price, call = ApiPrice("claude-sonnet-4-5", provider="anthropic"), ApiCall(100_000, 0, 0)
    apart = price.usd([call] * 10)
    together = float(
        prices.calc_price(
            prices.Usage(input_tokens=1_000_000), model_ref="claude-sonnet-4-5", provider_id="anthropic"
        ).total_price
    )
    assert math.isclose(apart, 10 * price.usd([call]))
    assert apart < together, "the list has a tier for long contexts: summed tokens would be priced in it"


def test_unknown_model_has_no_price():
    pytest.importorskip("genai_prices", reason="the extra 'prices' is not installed")
    price = ApiPrice("no-such-model-anywhere-1")
    assert price.usd([ApiCall(10, 0, 10)]) is None
    assert "n/a" in price.describe()


def test_break_even_works_the_example():
    # Debate at $0.0017, student at $0.000033, $3.41 of traces and $2.50 of training.
    found = break_even(Spend(3.41, 2.50, 0.0), 0.0017, 0.000033)
    assert found.questions == math.ceil(5.91 / 0.001667)


def test_break_even_has_the_interval_of_what_a_question_saves():
    found = break_even(Spend(1, 1, 1), 0.004, 0.001, Interval(0.003, 0.002, 0.006))
    assert (found.questions, found.low, found.high) == (1000, 500, 1500)
    perhaps_never = break_even(Spend(1, 1, 1), 0.004, 0.001, Interval(0.003, -0.001, 0.006))
    assert (perhaps_never.questions, perhaps_never.low, perhaps_never.high) == (1000, 500, None)


def test_the_same_tokens_have_a_hosted_price_that_says_it_is_assumed():
    assert HostedPrice().usd(2_000_000, 100_000) == pytest.approx(0.36)
    assert HostedPrice().describe().startswith("assumed: ")


def test_break_even_says_never():
    found = break_even(Spend(1, 1, 1), 0.001, 0.001)
    assert found.questions is None
    assert found.reason.startswith("never")


@pytest.mark.parametrize(
    ("spend", "team", "student", "names"),
    [
        (None, 1.0, 0.1, "one-off spend"),
        (Spend(recording=1, training=None, evaluation=1), 1.0, 0.1, "training"),
        (Spend(1, 1, 1), None, 0.1, "team"),
        (Spend(1, 1, 1), 1.0, None, "student"),
    ],
)
def test_break_even_names_what_is_missing(spend, team, student, names):
    found = break_even(spend, team, student)
    assert isinstance(found, BreakEven)
    assert found.questions is None
    assert names in found.reason


def test_spend_of_seconds_follows_the_price():
    spend = Spend.of_seconds(LocalPrice(usd_per_hour=3600), recording=1, training=2, evaluation=3)
    assert (spend.recording, spend.training, spend.evaluation) == (1, 2, 3)
    assert Spend.of_seconds(LocalPrice(), recording=1, training=2, evaluation=3).unknown == (
        "recording",
        "training",
        "evaluation",
    )
