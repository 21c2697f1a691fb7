"""From Metric Freedom to advice, under either published rule. Advice only: nothing is ever blocked by it.

Both versions agree on stage 1: tools and knowledge are always worth extracting; on a rigid metric the
pipeline and its restrictive instructions are kept, on a free one thrown away; the lift of stage 1 falls
as F rises. They contradict each other on stage 2, refinement:

    v1   refine only where the metric is rigid (F <= 0.6)
    v3   refine only where it is free (v2 says the same)

The border 0.6 is v1's; that v3 shares it is our choice, v3 names none. The outlook below 0.25 (skills in
one agent), to 0.65 (test both) and above (raw agent) is a third party's reading of v1 and stands for both
versions, because what stage 1 gains falls with F in both. Skills (worked examples) are dropped only where
v1 says raw agent: v3 needs them to refine. An undefined F leaves everything but tools and knowledge open.
"""

from __future__ import annotations

from soloist.toolchain.assess.result import Advice, Fate, Freedom, Outlook, Rule

BORDER = 0.6
HELPS_BELOW = 0.25
RAW_ABOVE = 0.65
SURE = 0.05
ITEMS = ("structure", "instructions", "skills", "tools", "knowledge")


def decide(rule: Rule, freedom: Freedom) -> Advice:
    """What `rule` advises at this Metric Freedom."""
    if freedom.value is None:
        return _undefined(rule, freedom)
    rigid = freedom.value <= BORDER
    refine = rigid if rule == "v1" else not rigid
    fate: Fate = "keep" if rigid else "drop"
    skills: Fate = "drop" if rule == "v1" and freedom.value > RAW_ABOVE else "keep"
    one_side = (
        freedom.low is not None and freedom.high is not None and (freedom.low > BORDER) == (freedom.high > BORDER)
    )
    certain = one_side and (not rigid or (freedom.p is not None and freedom.p <= SURE))
    reasons = [
        *_reasons(rule, freedom.value, rigid=rigid, refine=refine),
        *_doubts(freedom, rigid=rigid, one_side=one_side),
    ]
    return Advice(
        rule=rule,
        side="rigid" if rigid else "free",
        outlook=outlook(freedom.value),
        refine=refine,
        keep={"structure": fate, "instructions": fate, "skills": skills, "tools": "keep", "knowledge": "keep"},
        certain=certain,
        reasons=tuple(reasons),
    )


def outlook(value: float) -> Outlook:
    """Whether distilling is likely to help at this Metric Freedom, by the third party's thresholds."""
    if value < HELPS_BELOW:
        return "likely to help"
    return "test both" if value <= RAW_ABOVE else "unlikely to help"


def _reasons(rule: Rule, value: float, *, rigid: bool, refine: bool) -> list[str]:
    meaning = "rigid, different outputs score differently" if rigid else "free, outputs that differ score alike"
    return [
        f"F = {value:.2f} is {'at most' if rigid else 'above'} {BORDER}: the metric is {meaning}; the pipeline "
        f"and its instructions are {'kept' if rigid else 'dropped'}.",
        f"What distilling gains falls as F rises (both versions): {outlook(value)}.",
        f"Rule {rule} refines {'rigid' if rule == 'v1' else 'free'} metrics only: {'refine' if refine else 'leave it'}"
        f" ({'v3' if rule == 'v1' else 'v1'} says the opposite).",
    ]


def _doubts(freedom: Freedom, *, rigid: bool, one_side: bool) -> list[str]:
    doubts = []
    if freedom.low is None:
        doubts.append("There is no interval: the runs are too few or too alike to say how far F may move.")
    elif not one_side:
        doubts.append(f"The interval does not lie on one side of {BORDER}: more runs or questions may turn the advice.")
    if rigid and freedom.p is not None and freedom.p > SURE:
        doubts.append(f"The correlation may be chance (p = {freedom.p:.2f}): free is not ruled out.")
    return doubts


def _undefined(rule: Rule, freedom: Freedom) -> Advice:
    why = ", ".join(dict.fromkeys(question.why for question in freedom.questions)) or "no questions"
    keep: dict[str, Fate] = dict.fromkeys(ITEMS, "undecided")
    keep |= {"tools": "keep", "knowledge": "keep"}
    return Advice(
        rule=rule,
        side="undefined",
        outlook="cannot say",
        refine=None,
        keep=keep,
        certain=False,
        reasons=(
            f"Metric Freedom is undefined: {why}.",
            "Tools and knowledge are worth keeping under every rule.",
            "Ask harder questions, raise the temperature, or record more runs.",
        ),
    )
