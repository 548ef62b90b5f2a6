"""One page from one results file: every figure with its command, machine, date and versions.

    python benchmarks/results_page.py out/bench/results.json docs/results.md

What was measured on other machines, or at sizes that take longer, lies as JSON of the same programs in
``docs/results/elsewhere`` (``NAME.json`` or ``NAME.note.json``), each with its own machine in its ``config``.
``docs/results/limits.md`` (what does not work) is written by hand and put at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from results_recall import p_value
from results_tables import TABLES, generic

Record = Mapping[str, Any]
LIMITS = "limits.md"
TITLES = {
    "equal_budget": "Equal budget",
    "ttft_gpu": "Time to the first token on a GPU",
    "eval_retrieval": "Retrieval on a whole public set",
    "eval_citations": "Spans to cite, and when to abstain",
    "index_speed": "Search among many memories",
    "gate_needle": "Needles in long documents",
    "gate_qa": "Questions about passages",
    "composition": "Composers: several memories side by side",
    "codecs": "Codecs: bytes, quality, time",
}


def write_page(results: Path, page: Path, *, plots: Path | None = None, elsewhere: Path | None = None) -> None:
    """Write the page, and copy the plots that it shows into the folder ``results`` beside it.

    Args:
        results: of `run_all.py`.
        page: Markdown.
        plots: folder of PNGs named after programs; by default ``plots`` beside the results.
        elsewhere: folder of results of other machines.
    """
    document = json.loads(results.read_text(encoding="utf-8"))
    folder = page.parent / "results"
    shown = _copied(plots or results.parent / "plots", folder, document["programs"])
    parts = [_head(document), *(_section(name, record, shown) for name, record in document["programs"].items())]
    others = sorted(elsewhere.glob("*.json")) if elsewhere and elsewhere.is_dir() else []
    if others:
        parts.append(
            "## Measured elsewhere\n\nEach on the machine that is named with it, or at a size that takes longer."
        )
        parts += [_elsewhere(path) for path in others]
    limits = folder / LIMITS
    if limits.is_file():
        parts.append(limits.read_text(encoding="utf-8").strip())
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _copied(plots: Path, folder: Path, programs: Mapping[str, Record]) -> dict[str, str]:
    """Plots of programs that have a result, copied; name -> address on the page."""
    shown: dict[str, str] = {}
    for name, record in programs.items():
        source = plots / f"{name}.png"
        if record["status"] == "ok" and source.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / source.name)
            shown[name] = f"results/{source.name}"
    return shown


def _head(document: Mapping[str, Any]) -> str:
    config, programs = document["config"], document["programs"]
    packages = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    lines = [
        "# Results",
        "",
        "This page is made by `make bench` from one results file; nothing on it is typed by hand but the last section. "
        "Every figure stands below the command that made it.",
        "",
        f"**Machine:** {config['cpu']}, {config['cores']} cores, {config['system']}, device {config['device']}. "
        f"**Date:** {config['date']}. **Model:** {config['model']} (weights {config['weights']}). "
        f"**Versions:** Python {config['python']}, {packages}.",
        "",
        "Answers are greedy; every question counts once. Intervals are 95 % bootstrap intervals over questions, "
        "differences are paired, p is the exact McNemar test. Nothing is cut to fit: a prompt that is too long is an "
        "error. Ratios of times are measured in turns in one process. What measures times runs alone; of the other "
        f"programs {config['jobs']} run at once.{_took(config)}",
    ]
    if config["quick"]:
        lines += ["", "**Made with `QUICK=1`: sizes that show that everything runs. No figure here means anything.**"]
    if "squad" not in config["data"]:
        lines += ["", "**Made without `DATA`: the passages of the demo stand in for SQuAD, so samples are small.**"]
    if "locomo" not in config["data"]:
        lines += [
            "",
            "The conversations are generated ones (`benchmarks/made_conversations.py`): there was no LoCoMo file.",
        ]
    lines += ["", _contents(programs)]
    return "\n".join(lines)


def _took(config: Mapping[str, Any]) -> str:
    """How long the whole measurement took, if it was made in one run."""
    return f" All of it took {config['seconds'] / 60:.0f} minutes." if config["whole"] else ""


def _contents(programs: Mapping[str, Record]) -> str:
    rows = ["| what | result | seconds |", "|---|---|---|"]
    for record in programs.values():
        state = record["status"] + (f": {record['reason']}" if record.get("reason") else "")
        took = f"{record['seconds']:.0f}" if "seconds" in record else ""
        anchor = "".join(c for c in record["title"].lower().replace(" ", "-") if c.isalnum() or c in "-_")
        title = f"[{record['title']}](#{anchor})" if record["status"] == "ok" else record["title"]
        rows.append(f"| {title} | {state} | {took} |")
    return "\n".join(rows)


def _section(name: str, record: Record, plots: Mapping[str, str]) -> str:
    if record["status"] != "ok":
        return ""
    made = (
        f"`{record['command']}` ({record['seconds']:.0f} s, {record['threads']} thread{'s'[: record['threads'] != 1]})"
    )
    parts = [f"## {record['title']}", made, *rendered(name, record["result"])]
    if name in plots:
        parts.append(f"![{record['title']}]({plots[name]})")
    return "\n\n".join(part for part in parts if part)


def _elsewhere(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    name, _, note = path.stem.partition(".")
    config = result.get("config", {})
    where = config.get("machine") or config.get("gpu") or config.get("device") or "machine not recorded"
    command = config.get("command", "")
    made = f"`{command}`: " if command else ""
    title = f"{TITLES.get(name, name)}{f' ({note})' if note else ''}"
    versions = {"Python": config.get("python", ""), **config.get("versions", {})}
    facts = [str(where), *(str(config.get(key, "")) for key in ("device", "model", "date"))]
    facts += [f"{package} {version}" for package, version in versions.items() if version]
    said = made + ", ".join(dict.fromkeys(fact for fact in facts if fact))
    notes = [config["note"]] if "note" in config else []
    return "\n\n".join([f"### {title}", said, *notes, *rendered(name, result)])


def rendered(name: str, result: Mapping[str, Any]) -> list[str]:
    """The tables of a program's result; a result of a shape that is not known is shown as it is."""
    render: Callable[[Mapping[str, Any]], Sequence[str]] = TABLES.get(name, generic)
    try:
        return list(render(result))
    except (KeyError, TypeError, AttributeError, ValueError):
        return list(generic(result))


def for_readme(document: Mapping[str, Any]) -> str:
    """What the section "Does it pay?" of the README says; parts that were not measured are left out."""
    results = {name: record.get("result") or {} for name, record in document["programs"].items()}
    said = (_said_of_budget(results.get("equal_budget", {})), _said_of_answers(results.get("gate_qa", {})),
            _said_of_first_token(results.get("ttft", {})))  # fmt: skip
    return " ".join(sentence for sentence in said if sentence)


def _said_of_budget(found: Record) -> str:
    rows = [row for row in found.get("same_time", []) if (row["arm"], row["rag_passages"]) == ("exact", 1)]
    if not rows:
        return ""
    config, arms, row = found["config"], found["arms"], rows[0]
    more, one, text = arms["exact"][str(row["passages"])], arms["exact"]["1"], arms["rag"]["1"]
    first, theirs = (cell["seconds_to_first_token"] for cell in (more, text))
    right, single, read = (f"{100 * cell['exact_match']:.1f}" for cell in (more, one, text))
    return (
        f"On {config['questions']} SQuAD questions over {config['passages']} passages ({config['cores']} CPU cores, "
        f"{config['model']}), NNM at its second use answers from {row['passages']} passages in {first:.2f} s to the "
        f"first token, classic RAG with MiniLM from one in {theirs:.2f} s; EM is {right} against {read} (p "
        f"{p_value(row['p_holm'])}). With one passage each it is {single} against {read}."
    )


def _said_of_answers(found: Record) -> str:
    pairs = [pair for pair in found.get("comparisons", []) if pair["theirs"] == "oracle rag same order"]
    return "".join(
        f"The same passages injected or read give the same answers: {pair['identical']} of {pair['count']} questions, "
        "token for token."
        for pair in pairs[:1]
    )


def _said_of_first_token(found: Record) -> str:
    ratios = found.get("ratio", {}).get("injected", {})
    longest = max(ratios, key=int, default="")
    return longest and (
        f"At {int(longest):,} tokens the first token comes {ratios[longest]:.0f} times sooner than by reading."
    )


def main() -> None:
    """Make the page again from a results file that is there."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("results", type=Path)
    options.add_argument("page", type=Path)
    options.add_argument("--elsewhere", type=Path, default=Path(__file__).parents[1] / "docs/results/elsewhere")
    arguments = options.parse_args()
    write_page(arguments.results, arguments.page, elsewhere=arguments.elsewhere)
    print(for_readme(json.loads(arguments.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
