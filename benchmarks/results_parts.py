"""Tables of the parts' own measurements on the results page: composers and codecs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def composition_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Head and rows: an arm of a size and setting each; EM, F1, KL, what was computed again, how far it comes."""
    head = [
        "memories", "needed", "arm", "EM %", "F1 % [95 %]", "F1 - read [95 %]", "KL", "recomputed %", "recovery EM %",
        "recovery F1 % [95 %]", "read / this, first token",
    ]  # fmt: skip
    rows = []
    for key, row in result["arms"].items():
        arm, memories, needed = key.rsplit(", ", 2)
        rows.append([
            memories.split()[0], needed.split()[0], arm, f"{100 * row['em']['mean']:.1f}", _interval(row["f1"]),
            "" if arm == "read" else _interval(row["f1_minus_read"], sign="+"),
            f"{row['kl']['mean']:.3f}" if "kl" in row else "", f"{100 * row['share_recomputed']:.1f}",
            _recovered(row.get("recovery_em")).split(" [")[0], _recovered(row.get("recovery_f1")),
            f"{row['read_over_this']:.2f} x" if "read_over_this" in row else "",
        ])  # fmt: skip
    return head, rows


def codec_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Head and rows: an arm each; quality against reading, size, times."""
    head = ["arm", "EM %", "F1 %", "F1 - read [95 %]", "same %", "KL", "bytes a token", "RMS error, keys / values"]
    head += ["encode ms", "load from RAM ms", "load from disk ms"]
    rows = []
    for arm, row in result["arms"].items():
        times = row.get("seconds", {})
        shown = [_milliseconds(times.get(name)) for name in ("encode", "ram", "disk")]
        if "read" in times:
            shown[1] = f"reading: {_milliseconds(times['read'])}"
        gap = row.get("f1_minus_read")
        rows.append([
            arm, *(f"{row[key]['mean']:.1f}" if key in row else "" for key in ("em", "f1")),
            f"{gap['mean']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]" if gap and arm != "read" else "",
            f"{row['same']:.1f}" if "same" in row else "", f"{row['kl']:.5f}" if "kl" in row else "",
            f"{row['bytes_per_token']:,.0f}" if "bytes_per_token" in row else "",
            " / ".join(f"{error:.4f}" for error in row.get("error", {}).values()), *shown,
        ])  # fmt: skip
    return head, rows


def _interval(found: Result, sign: str = "") -> str:
    mean, low, high = (format(100 * found[key], f"{sign}.1f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _recovered(found: Result | None) -> str:
    if found is None:
        return ""
    if found["mean"] is None:
        return "no gap"
    mean, low, high = (f"{100 * found[key]:.0f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _milliseconds(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{1000 * found['median']:.2f}"


def questions(result: Result, names: Sequence[str]) -> str:
    """A sentence about what was asked."""
    config = result["config"]
    settings = ", ".join(f"{name.replace('_', ' ')} {config[name]}" for name in names if name in config)
    return f"{config['questions']} questions ({config['data']}), {config['dtype']}; {settings}."
