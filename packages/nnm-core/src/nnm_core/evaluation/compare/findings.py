"""What a comparison shows, in sentences: whichever way it goes, and no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnm_core.evaluation.compare.arms import LABELS
from nnm_core.evaluation.compare.breakeven import break_even
from nnm_core.evaluation.compare.table import p_value, size
from nnm_core.evaluation.report import seconds

if TYPE_CHECKING:
    from nnm_core.evaluation.compare.run import Comparison

Arms = Mapping[str, Mapping[str, Any]]
_SURE = 0.05


def findings(comparison: Comparison) -> list[str]:
    """Plain sentences, the most important first."""
    arms = comparison.arms
    found = [_quality(arms, name) for name in ("nnm", "composed")]
    found += [_exactness(arms), _control(arms), *_speed(arms), *_even(arms), _storage(arms)]
    return [sentence for sentence in found if sentence]


def _quality(arms: Arms, name: str) -> str:
    if name not in arms or "rag" not in arms or "mcnemar_rag" not in arms[name]:
        return ""
    ours, theirs = arms[name], arms["rag"]
    difference, test = ours["exact_match_minus_rag"], ours["mcnemar_rag"]
    if test["p"] >= _SURE:
        verdict = "no difference is shown"
    else:
        verdict = "it is ahead" if difference["mean"] > 0 else "it is behind"
    mean, low, high = (f"{100 * difference[key]:+.1f}" for key in ("mean", "low", "high"))
    return (
        f"{LABELS[name]}: {100 * ours['exact_match']:.0f} % exact answers, classic RAG "
        f"{100 * theirs['exact_match']:.0f} %; {verdict} (difference {mean} points, 95 % {low} to {high}; "
        f"{test['ours']} questions only it got right, {test['theirs']} only RAG, p {p_value(test['p'])})."
    )


def _exactness(arms: Arms) -> str:
    parts = [
        f"{LABELS[name]} {arms[name]['same_answer_as_read']} of {arms[name]['questions']}"
        for name in ("nnm", "nnm_again", "composed")
        if name in arms and "same_answer_as_read" in arms[name]
    ]
    return f"The same answer, token for token, as reading the very same prompt: {', '.join(parts)}." if parts else ""


def _control(arms: Arms) -> str:
    if not {"random", "bare"} <= set(arms) or not arms["random"]["judged"]:
        return ""
    return (
        f"Random memories: {100 * arms['random']['exact_match']:.0f} % exact answers, the bare model "
        f"{100 * arms['bare']['exact_match']:.0f} %: what injection does when it brings no evidence."
    )


def _speed(arms: Arms) -> list[str]:
    if "rag" not in arms:
        return []
    theirs = arms["rag"]["seconds_to_first_token"]
    parts = []
    for name in ("nnm", "nnm_again", "composed"):
        if name in arms:
            ours = arms[name]["seconds_to_first_token"]
            ratio = f"{theirs / ours:.1f} times sooner" if ours <= theirs else f"{ours / theirs:.1f} times later"
            parts.append(f"{LABELS[name]} {seconds(ours)} ({ratio})")
    return [f"First token: classic RAG {seconds(theirs)}, {', '.join(parts)}."] if parts else []


def _even(arms: Arms) -> list[str]:
    if "rag" not in arms:
        return []
    parts = []
    for name in ("nnm_again", "composed"):
        if name in arms:
            found = break_even(arms, name)
            count = "never pays" if found.questions is None else f"pays from question {found.questions:,} on"
            parts.append(f"{LABELS[name]} {count}")
    return [f"Ingest: {'; '.join(parts)} (time of ingest against time saved on each answer)."] if parts else []


def _storage(arms: Arms) -> str:
    ours = next((arms[name] for name in ("nnm", "composed", "nnm_again") if name in arms), None)
    if ours is None or "rag" not in arms:
        return ""
    theirs = arms["rag"]["bytes_stored"]
    return (
        f"Stored: {size(ours['bytes_stored'])} against {size(theirs)} of classic RAG "
        f"({ours['bytes_stored'] / max(theirs, 1):,.0f} times as much)."
    )
