"""The tables of the results page: one function a program, from its JSON to Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from results_parts import codec_rows, composition_rows, questions
from results_recall import as_paragraphs, choices, citation_rows, index_rows, p_value, retrieval_tables

Result = Mapping[str, Any]
Row = Sequence[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def time(value: float | None) -> str:
    """Seconds for people."""
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def share(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Per cent, with its interval."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def points(found: Result) -> str:
    """A paired difference in points with its interval."""
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def equal_budget(result: Result) -> list[str]:
    """EM over the budget, and the pairs."""
    config = result["config"]
    rows = [
        [arm, k, f"{row['prompt_tokens']:,.0f}", time(row["seconds_to_first_token"]),
         share(row["exact_match"], row["exact_match_interval"]), share(row["f1"]), share(row["gold_given"])]
        for arm, cells in result["arms"].items() for k, row in cells.items()
    ]  # fmt: skip
    checked = [
        f"{arm} {sum(row['same_answer_as_reading'] or 0 for row in cells.values())} of "
        f"{sum(row['timed'] for row in cells.values())}"
        for arm, cells in result["arms"].items() if arm != "composed"
    ]  # fmt: skip
    seconds = config["ingest_seconds"]
    ingest = "which were in the store already" if seconds is None else f"{seconds:.0f} s"
    return [
        f"{config['questions']} unique questions ({config['data']}), all {config['passages']:,} passages searched; "
        f"classic RAG: {config['retriever']}; times from {config['timed']} of them, retrieval included; ingest of all "
        f"passages: {ingest}. `exact` is at repeated use.",
        table(["arm", "passages", "prompt tokens", "first token", "EM % [95 %]", "F1 %", "gold given %"], rows),
        f"Answers from states that are those of reading the text, on the timed questions: {', '.join(checked)}.",
        "**At the same time to the first token** (the most passages that are no slower than classic RAG):",
        _budget_pairs(result["same_time"]),
        "**At the same number of passages** (nearly the same prompt tokens):",
        _budget_pairs(result["same_tokens"]),
    ]


def _budget_pairs(pairs: Sequence[Result]) -> str:
    if not pairs:
        return "None: no number of passages was as quick."
    rows = [
        [row["arm"], row["passages"], row["rag_passages"], time(row.get("budget_seconds")), points(row["difference"]),
         f"{row['mcnemar']['ours']} : {row['mcnemar']['theirs']}", p_value(row["mcnemar"]["p"]), p_value(row["p_holm"])]
        for row in pairs
    ]  # fmt: skip
    head = [
        "arm",
        "its passages",
        "RAG's passages",
        "budget",
        "EM difference [95 %]",
        "only one right",
        "p",
        "p (Holm)",
    ]
    return table(head, rows)


def ttft(result: Result) -> list[str]:
    """Times and ratios over the length."""
    arms, ratios = result["arms"], result["ratio"]
    rows = [
        [f"{int(length):,}", *(time(arms[name]["seconds_to_first_token"][length]["median"]) for name in arms),
         *(f"{ratios[name][length]:.1f} x" for name in ratios)]
        for length in next(iter(ratios.values()))
    ]  # fmt: skip
    lines = [
        f"Medians of {result['config']['repeats']}, in turns, without the search. `injected` loads from disk.",
        table(["memory, tokens", *arms, *(f"read / {name}" for name in ratios)], rows),
    ]
    if "decoding" in result:
        lines.append(
            f"A token decoded after injecting takes {result['decoding']['ratio']:.3f} of the time after reading. "
            f"Injecting pays from {_lengths(result['break_even_tokens'])} on."
        )
    return lines


def _lengths(by_name: Mapping[str, int | None]) -> str:
    return ", ".join(f"{'never' if n is None else f'{n:,} tokens'} ({name})" for name, n in by_name.items())


def ttft_gpu(result: Result) -> list[str]:
    """Milliseconds of every way, beside the floor; and what decoding takes."""
    arms, ratios, floors = result["arms"], result["ratio"], result["floor"]
    lengths = sorted(floors, key=int)
    rows = []
    for name, arm in arms.items():
        cells = []
        for length in lengths:
            seconds = arm["seconds_to_first_token"].get(length)
            faster = f" ({ratios[name][length]:.1f} x)" if seconds is not None and name != "read" else ""
            cells.append("-" if seconds is None else f"{1000 * seconds:.1f}{faster}")
        rows.append([name, *cells])
    rows.append(
        ["floor", *(f"{1000 * max(row['bus'], row['weights']):.1f}" for row in map(floors.__getitem__, lengths))]
    )
    decoded = sorted(result["decode"].items(), key=lambda found: int(found[0]))
    decoding = ", ".join(f"{row['ratio']:.3f} at {int(n):,}" for n, row in decoded)
    return [
        "Milliseconds to the first token by tokens of the memory; the question has "
        f"{result['config']['suffix']} tokens. The floor is the larger of the state's bytes over the measured bus and "
        "the weights' bytes over the measured memory bandwidth.",
        table(["way", *(f"{int(length):,}" for length in lengths)], rows),
        f"A token decoded after injecting, over one decoded after reading: {decoding}. "
        f"Graphs: {result['config']['graphs']}.",
    ]


def ingest(result: Result) -> list[str]:
    """Seconds, and over a forward pass."""
    rows = [
        [name, time(row["seconds"]["median"]), *(f"{result[key][name]:.2f} x" if name in result[key] else ""
                                                for key in ("ratio", "ratio_to_backbone"))]
        for name, row in result["arms"].items()
    ]  # fmt: skip
    config = result["config"]
    return [
        f"{config['tokens']:,} tokens in {config['passages']} passages, medians of {config['repeats']}.",
        table(["arm", "seconds", "over a forward pass", "over one without logits"], rows),
    ]


def langchain_overhead(result: Result) -> list[str]:
    """Times and what they are over the engine's."""
    modes, over = list(result["overhead"]), result["overhead"]
    rows = [
        [name, *(time(row["seconds"][mode]["median"]) for mode in modes),
         *(f"{100 * over[mode][name]:+.1f} %" if name in over[mode] else "" for mode in modes)]
        for name, row in result["arms"].items()
    ]  # fmt: skip
    return [table(["arm", *modes, *(f"over the engine, {mode}" for mode in modes)], rows)]


def llamaindex_overhead(result: Result) -> list[str]:
    """Milliseconds, and those that are added."""
    rows = [[name, f"{row['median_ms']:.1f}", f"{row['added_ms']:+.2f}"] for name, row in result["arms"].items()]
    return [table(["arm", "median ms", "added ms"], rows)]


def exactness(result: Result) -> list[str]:
    """Equal answers and the largest difference of logits."""
    rows = [
        [name, row["prompts"], f"{row['equal']} of {row['prompts']}", f"{row['largest']:.1e}", f"{row['injected']:,}",
         f"{row['read']:,}"]
        for name, row in result["arms"].items()
    ]  # fmt: skip
    head = ["arm", "prompts", "same greedy tokens", "largest \\|delta logit\\|", "tokens injected", "tokens read"]
    return [table(head, rows).replace("\\\\", "\\")]


def gate(result: Result) -> list[str]:
    """Arms, paired comparisons, groups and checks of a gate."""
    parts = []
    first = next(iter(result["arms"].values()))
    metrics = [key for key in first if f"{key}_interval" in first]
    rows = [
        [arm, *(share(row[key], row[f"{key}_interval"]) for key in metrics), f"{row['tokens_mean']['read']:,.0f}",
         f"{row['tokens_mean']['injected']:,.0f}"]
        for arm, row in result["arms"].items()
    ]  # fmt: skip
    parts.append(f"{first['count']} unique cases; % with 95 % intervals, mean tokens of a prompt.")
    parts.append(table(["arm", *(key.replace("_", " ") for key in metrics), "read", "injected"], rows))
    if result.get("comparisons"):
        pairs = [
            [f"{c['ours']} - {c['theirs']}", points(c["differences"][c["metric"]]),
             f"{c['test']['ours']} : {c['test']['theirs']}", p_value(c["test"]["p"]),
             f"{c['identical']} of {c['count']}"]
            for c in result["comparisons"]
        ]  # fmt: skip
        metric = result["comparisons"][0]["metric"].replace("_", " ")
        parts.append(table(["pair", f"{metric}, points [95 %]", "only one right", "p", "same tokens"], pairs))
    for label, values in (result.get("groups") or {}).items():
        if len(values) > 1:
            arms = [arm for arm in result["arms"] if all(arm in row for row in values.values())]
            rows = [
                [value, *(f"{100 * row[arm]:.0f}" for arm in arms), f"{row['count']:.0f}"]
                for value, row in values.items()
            ]
            parts.append(table([label, *arms, "n"], rows))
    marks = {True: "holds", False: "**does not hold**", None: "too few cases"}
    parts += [f"* {check['name']}: {marks[check['passed']]} ({check['detail']})" for check in result.get("checks", [])]
    head, checks = [p for p in parts if not p.startswith("* ")], [p for p in parts if p.startswith("* ")]
    return [*head, "\n".join(checks)] if checks else head


def original_claims(result: Result) -> list[str]:
    """What is measured here, and the tests of the published counts."""
    arms, config = result["arms"], result["config"]
    rows = [
        [name, f"{row['right']:.0f} of {row['items']}", share(row["mean"], row["interval"]), _uncut(row)]
        for name, row in arms.items()
    ]
    before = arms["layout: before, injected"]
    counts = [
        [row["claim"], f"{row['as_counted']['nnm']} : {row['as_counted']['rag']} of {row['counted']}",
         p_value(row["as_counted"]["p"]), f"{row['each_item_once']['nnm']} : {row['each_item_once']['rag']} of "
         f"{row['each_item_once']['items']}", p_value(row["each_item_once"]["p"])]
        for row in result["published"]
    ]  # fmt: skip
    return [
        "**Layout.** The original put the passage's states before the whole chat prompt and compared that with a "
        "passage inside the user turn. Reading the very tokens that are injected gives the same answers "
        f"({before['same_answer_as_read']} of {before['items']} here): whatever differs is layout, not injection.",
        "**Truncation.** Its library cut prompts at 2,048 tokens in silence, which cost classic RAG the question. Cut "
        f"on purpose at {config['limit']:,} tokens, {config['needle_prompts_longer_than_limit']} of "
        f"{config['needle_prompts']} prompts are longer. Whole, classic RAG finds "
        f"{arms['needle: RAG, whole']['right']:.0f} and NNM {arms['needle: NNM, whole']['right']:.0f} needles.",
        table(["arm", "right", "% [95 %]", "% among prompts that were not cut"], rows),
        "**Repetition.** Its significance came from counting each greedy answer three times (only NNM right : only RAG "
        "right, exact McNemar test):",
        table(["published claim", "as counted", "p", "each item once", "p"], counts),
    ]


def _uncut(row: Result) -> str:
    return share(row["among_uncut"]) if row.get("among_uncut") is not None else ""


def generic(result: Result) -> list[str]:
    """Any result with ``arms``: an arm a row, its plain figures as columns."""
    arms = {name: _flat(row) for name, row in result.get("arms", {}).items() if isinstance(row, Mapping)}
    columns = list(dict.fromkeys(key for row in arms.values() for key in row))[:10]
    if not columns:
        return []
    rows = [[name, *(_cell(key, row.get(key)) for key in columns)] for name, row in arms.items()]
    return [table(["arm", *(key.replace("_", " ") for key in columns)], rows)]


def _flat(row: Result) -> dict[str, Any]:
    """Numbers and short texts of an arm; of a spread its median, of an interval its mean."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            inner = value.get("median", value.get("mean"))
            if isinstance(inner, int | float) and "low" in value and "p" in value:
                flat[key] = f"{inner:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            elif isinstance(inner, int | float):
                flat[key] = inner
            elif value and all(isinstance(v, int | float) for v in value.values()) and len(value) <= 4:
                flat |= {f"{key} {name}": v for name, v in value.items()}
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            flat[key] = value
    return flat


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if "second" in key:
        return time(float(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"


def composition(result: Result) -> list[str]:
    """Every composer beside reading and plain concatenation."""
    return [questions(result, ("ratio", "max_tokens", "repeats")), table(*composition_rows(result))]


def codecs(result: Result) -> list[str]:
    """What each codec costs in quality, bytes and time."""
    config = result["config"]
    asked = questions(result, ("tokens", "max_tokens", "repeats"))
    if not config["questions"]:
        asked = f"Bytes and times only, {config['dtype']}; memories of {config['tokens']:,} tokens."
    return [asked, table(*codec_rows(result))]


def retrieval(result: Result) -> list[str]:
    """Every set's arms and steps, and what was chosen."""
    return [*as_paragraphs([(title, table(*made)) for title, made in retrieval_tables(result)]), *choices(result)]


def citations(result: Result) -> list[str]:
    """Spans and abstaining, on what."""
    config = result["config"]
    asked = ", ".join(f"{count} {kind}" for kind, count in config["questions"].items())
    facts = (
        f"{config['passages']} passages of {config['data']}; {asked} questions; read over {config['depth']} candidates."
    )
    return [facts, table(*citation_rows(result))]


def index_speed(result: Result) -> list[str]:
    """One index, filled with made-up memories."""
    config = result["config"]
    made_up = "made-up memories (clustered vectors, words by Zipf's law)"
    return [f"{config['memories']:,} {made_up}, {config['questions']} questions.", table(*index_rows(result))]


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "equal_budget": equal_budget,
    "ttft": ttft,
    "ttft_gpu": ttft_gpu,
    "ingest": ingest,
    "langchain_overhead": langchain_overhead,
    "llamaindex_overhead": llamaindex_overhead,
    "exactness": exactness,
    "composition": composition,
    "codecs": codecs,
    "eval_retrieval": retrieval,
    "eval_citations": citations,
    "index_speed": index_speed,
    "original_claims": original_claims,
    "gate_qa": gate,
    "gate_needle": gate,
    "gate_needle_long": gate,
    "gate_multi": gate,
    "gate_conversation": gate,
    "gate_claims": gate,
    "gate_extraction": gate,
}
