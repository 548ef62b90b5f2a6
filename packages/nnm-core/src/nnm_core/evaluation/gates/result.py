"""What a gate says: figures of every arm, paired comparisons, checks, and every item."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnm_core.evaluation.gates.core import Item
from nnm_core.evaluation.statistics import Interval, McNemar, bootstrap, mcnemar, paired_bootstrap

# A control counts as being at the floor if it is, with 95 % confidence, less than this above it.
FLOOR_MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the same cases.

    Attributes:
        ours, theirs: names of the arms.
        metric: the one that `test` is about, 0 or 1 for each case.
        test: exact McNemar test of `metric`.
        differences: of every metric, ours minus theirs, paired bootstrap.
        identical: cases in which both wrote the same tokens.
        count: cases.
    """

    ours: str
    theirs: str
    metric: str
    test: McNemar
    differences: Mapping[str, Interval]
    identical: int
    count: int


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to hold. `passed` None: too few cases to say."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate.

    Attributes:
        gate: its name.
        primary: the metric of the tests, 0 or 1 for each case.
        arms: name -> figures (`summarise`).
        comparisons: paired.
        checks: what has to hold; the gate is passed if none of them failed.
        items: every case in every arm.
        groups: label -> its values -> arm -> mean of `group_metric`, and ``count``.
        config: with what it was made.
        group_metric: of the groups; `primary` if empty.
    """

    gate: str
    primary: str
    arms: Mapping[str, Mapping[str, Any]]
    comparisons: Sequence[Comparison]
    checks: Sequence[Check]
    items: Sequence[Item]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    group_metric: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``arms`` and ``config`` at the top, then the rest."""
        return {
            "gate": self.gate,
            "passed": self.passed,
            "arms": self.arms,
            "config": self.config,
            "comparisons": self.comparisons,
            "checks": self.checks,
            "groups": self.groups,
            "items": [item.to_dict() for item in self.items],
        }


def of_arm(items: Sequence[Item], arm: str) -> list[Item]:
    """The items of one arm, in the order of the cases."""
    return [item for item in items if item.arm == arm]


def arm_names(items: Sequence[Item]) -> list[str]:
    """The arms that occur, in order."""
    return list(dict.fromkeys(item.arm for item in items))


def summarise(items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Arm -> figures: every metric with its 95 % bootstrap interval over unique cases, exact token counts, seconds.

    ``tokens`` are sums over all cases, of the receipts; ``tokens_mean`` their means; ``prompt_tokens`` the shortest
    and the longest prompt; seconds are medians; ``asked`` counts the cases that no other arm had asked in the very same
    way; ``cut_short`` those whose answer was longer than allowed.
    """
    return {arm: _figures(of_arm(items, arm)) for arm in arm_names(items)}


def _figures(mine: Sequence[Item]) -> dict[str, Any]:
    receipts = [item.answer.receipt for item in mine]
    kinds = ("read", "injected", "recomputed", "generated")
    counts = {kind: sum(getattr(receipt, f"tokens_{kind}") for receipt in receipts) for kind in kinds}
    lengths = [receipt.tokens_read + receipt.tokens_injected for receipt in receipts]
    figures: dict[str, Any] = {"count": len(mine)}
    for metric in mine[0].scores:
        found = bootstrap([item.scores[metric] for item in mine])
        figures[metric] = found.mean
        figures[f"{metric}_interval"] = [found.low, found.high]
    return figures | {
        "tokens": counts,
        "tokens_mean": {kind: count / len(mine) for kind, count in counts.items()},
        "prompt_tokens": [min(lengths), max(lengths)],
        "seconds_to_first_token": statistics.median(receipt.seconds_to_first_token for receipt in receipts),
        "seconds_total": statistics.median(receipt.seconds_total for receipt in receipts),
        "tiers": dict(Counter(receipt.tier for receipt in receipts)),
        "asked": sum(not item.same_as for item in mine),
        "cut_short": sum(item.answer.finish_reason == "length" for item in mine),
    }


def compare(items: Sequence[Item], pairs: Sequence[tuple[str, str]], metric: str) -> list[Comparison]:
    """The paired tests of those pairs of arms that are both there."""
    there = set(arm_names(items))
    return [_compare(items, ours, theirs, metric) for ours, theirs in pairs if {ours, theirs} <= there]


def _compare(items: Sequence[Item], ours: str, theirs: str, metric: str) -> Comparison:
    left, right = of_arm(items, ours), of_arm(items, theirs)
    return Comparison(
        ours,
        theirs,
        metric,
        mcnemar([item.scores[metric] for item in left], [item.scores[metric] for item in right]),
        {
            name: paired_bootstrap([item.scores[name] for item in left], [item.scores[name] for item in right])
            for name in left[0].scores
        },
        sum(a.answer.token_ids == b.answer.token_ids for a, b in zip(left, right, strict=True)),
        len(left),
    )


def grouped(items: Sequence[Item], labels: Sequence[str], metric: str) -> dict[str, dict[str, dict[str, float]]]:
    """For each label, for each of its values: the mean of `metric` in every arm, and the number of cases."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for label in labels:
        rows: dict[str, dict[str, list[float]]] = {}
        for item in items:
            rows.setdefault(str(item.case.labels[label]), {}).setdefault(item.arm, []).append(item.scores[metric])
        result[label] = {
            value: {arm: statistics.fmean(scores) for arm, scores in arms.items()}
            | {"count": float(len(next(iter(arms.values()))))}
            for value, arms in rows.items()
        }
    return result


def same_tokens(items: Sequence[Item], ours: str, theirs: str) -> Check | None:
    """The promise of the exact tier: `ours` wrote, case by case, the very tokens of `theirs`.

    None if one of the arms is not there.
    """
    left, right = of_arm(items, ours), of_arm(items, theirs)
    if not left or not right:
        return None
    differing = [a.case.id for a, b in zip(left, right, strict=True) if a.answer.token_ids != b.answer.token_ids]
    detail = f"{len(left) - len(differing)} of {len(left)} answers are the same tokens"
    if differing:
        detail += f"; not {', '.join(differing[:3])}"
    return Check(f"{ours} = {theirs}", not differing, detail)


def at_floor(items: Sequence[Item], control: str, floor: str, metric: str) -> Check | None:
    """A control that must not help: it is less than `FLOOR_MARGIN` above the floor, or too few cases say so."""
    left, right = of_arm(items, control), of_arm(items, floor)
    if not left or not right:
        return None
    found = paired_bootstrap([item.scores[metric] for item in left], [item.scores[metric] for item in right])
    passed = True if found.high <= FLOOR_MARGIN else False if found.low > 0 else None
    detail = (
        f"{100 * found.mean:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] of {metric} over "
        f"{found.count} cases; at most {100 * FLOOR_MARGIN:.0f} are allowed"
    )
    return Check(f"{control} is at the floor of {floor}", passed, detail)


def injected_something(items: Sequence[Item], arm: str) -> Check | None:
    """An injecting arm that injected nothing would have measured reading."""
    mine = of_arm(items, arm)
    if not mine:
        return None
    without = [item.case.id for item in mine if not any(part.action != "read" for part in item.answer.receipt.parts)]
    detail = f"states of memories were injected in {len(mine) - len(without)} of {len(mine)} cases"
    return Check(f"{arm} injects", not without, detail)


def kept(checks: Sequence[Check | None]) -> list[Check]:
    """The checks that could be made."""
    return [check for check in checks if check is not None]
