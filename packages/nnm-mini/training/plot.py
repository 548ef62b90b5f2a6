"""Draw the loss curves of a run: python plot.py --losses WORK/losses.jsonl --out loss.png"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of a curve -> (millions of tokens, mean cross-entropy); stages follow one another, losses of 0 are left
    out."""
    out: dict[str, list[tuple[float, float]]] = {}
    offset, last, stage = 0.0, 0.0, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "context" not in row:
            continue
        if row["stage"] != stage:
            offset, stage = offset + last, row["stage"]
        last = row["millions"]
        for name in ("context", "answer"):
            if row[name] > 0:
                out.setdefault(f"{stage}: {name}", []).append((offset + last, row[name]))
    return out


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, points in curves(args.losses).items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("million tokens")
    axes.set_ylabel("cross-entropy a token (nats)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
