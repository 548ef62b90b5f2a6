"""Choose among the end of a run and means of it with earlier weights, and how readily it declines; store the best.

python choose.py --config configs/fourth.json --work WORK --init STORED --tokenizer tokenizer
    --written WORK/written-held-out --out WORK/chosen --expanded WORK/model-chosen --report WORK/choice.json
    [--after WORK/trained]

The config's `run.candidates` names each candidate's parts with their shares: `final` is the checkpoint WORK/final.pt,
`final-<n>` one that was kept on the way, `shipped` the weights of `--init`. Each candidate is rounded to int8 as it
would ship and answers the hand-written questions of `calibrate.py` and, where there are any, questions that another
model wrote on held-out articles. Of all shifts of declining that lose at most `run.most_lost` of the right answers on
either set, the one with the best score is taken: the mean over the sets of (2 x F1 of the answerable + rightly
declined) / 3. No dev or test question is read. With `--after`, it waits for that file, so that it has started when
training ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from average import Weights, mean, write
from calibrate import Case, Look, Probe, cases, shares, shifted, written_cases
from recipe.config import Shape, load
from recipe.model import to_transformers, transformers_config
from recipe.quantise import load_stored

from nnm_mini._weights import expand

SHIFTS = [0.5 * step for step in range(17)]
Set = tuple[list[Look], list[Case]]


def parts(work: Path, init: Path, wanted: set[str]) -> dict[str, Weights]:
    """The weights that candidates are made of, under the names of `transformers`."""
    out: dict[str, Weights] = {}
    for name in sorted(wanted):
        checkpoint = work / f"{name}.pt"
        if name == "shipped":
            out[name] = load_stored(init)
        elif checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
            out[name] = {key: value.float().numpy() for key, value in to_transformers(state).items()}
    return out


def score(tables: list[dict[str, float]]) -> float:
    """The mean over the sets of (2 x F1 of the answerable + rightly declined) / 3, in percent."""
    return sum(2 * table["f1"] + table["rightly_declined"] for table in tables) / (3 * len(tables))


def best_shift(sets: list[Set], most_lost: float) -> dict[str, Any]:
    """The best allowed shift with its score and tables; the last one if all lose too much."""
    found: dict[str, Any] = {}
    for shift in SHIFTS:
        tables = [shares(looks, chosen, shift) for looks, chosen in sets]
        allowed = all(table["lost"] <= 100 * most_lost for table in tables)
        if (allowed and score(tables) > found.get("score", -1.0)) or (shift == SHIFTS[-1] and not found):
            found = {"shift": shift, "score": round(score(tables), 2), "allowed": allowed, "tables": tables}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "work", "init", "tokenizer", "out", "expanded", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--written", type=Path, help="questions that another model wrote on held-out articles")
    parser.add_argument("--after", type=Path, help="wait for this file before anything is read")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    import transformers  # noqa: F401  # takes seconds: loaded while it waits

    config = load(args.config)
    while args.after and not args.after.exists():
        time.sleep(0.2)
    groups = [cases(), written_cases(args.written, config["run"].get("written_cases", 500)) if args.written else []]
    groups = [group for group in groups if {bool(answer) for _, answer in group} == {True, False}]
    recipes: dict[str, dict[str, float]] = config["run"]["candidates"]
    weights = parts(args.work, args.init, {name for recipe in recipes.values() for name in recipe})
    report: dict[str, Any] = {}
    best: tuple[float, str, Weights] | None = None
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "config"
        source.mkdir()
        shape = transformers_config(Shape(**config["model"]))
        (source / "config.json").write_text(json.dumps(shape, indent=1) + "\n")
        (source / "generation_config.json").write_bytes((args.init / "generation_config.json").read_bytes())
        for label, recipe in recipes.items():
            if not set(recipe) <= set(weights):
                continue  # a point that was not kept
            candidate = mean(weights, recipe)
            stored, folder = Path(name) / f"{label}-stored", Path(name) / label
            folder.mkdir()
            write(candidate, source, args.tokenizer, stored)
            expand(stored, folder)
            probe = Probe(folder, args.device)
            sets = [(probe.look([prompt for prompt, _ in group]), group) for group in groups]
            found = best_shift(sets, config["run"].get("most_lost", 0.1))
            never = [shares(looks, chosen, 99.0) for looks, chosen in sets]
            report[label] = {"parts": recipe, **found, "unshifted": [shares(*s, 0.0) for s in sets], "never": never}
            print(label, json.dumps(report[label]), flush=True)
            if best is None or (found["allowed"], found["score"]) > (report[best[1]]["allowed"], best[0]):
                best = (found["score"], label, shifted(candidate, *sets[0], found["shift"], probe.decline))
            del probe
        if best is None:
            raise SystemExit(f"no candidate has all its parts in {args.work}")
        checksum = write(best[2], source, args.tokenizer, args.out)
    args.expanded.mkdir(parents=True, exist_ok=True)
    expand(args.out, args.expanded)
    args.report.write_text(json.dumps({"chosen": best[1], "checksum": checksum, "candidates": report}, indent=1) + "\n")
    print(f"chosen {best[1]}, shift {report[best[1]]['shift']}, checksum {checksum}", flush=True)


if __name__ == "__main__":
    main()
