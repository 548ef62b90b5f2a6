"""Which programs make up the whole measurement, with what arguments, and for how long each may run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

QUICK_LIMIT = 240


@dataclass(frozen=True)
class Program:
    """One program of the whole measurement.

    Attributes:
        name: of its files; also says how its result is shown.
        title: heading on the page.
        command: words; those in braces stand for paths (`{squad}`, `{squad2}`, `{scifact}`, `{questions}`, `{talks}`,
            `{text}`, `{store}`).
        limit: seconds after which it is stopped.
        alone: it measures times, so nothing else runs beside it.
        plot: it takes ``--plot``.
    """

    name: str
    title: str
    command: tuple[str, ...]
    limit: int
    alone: bool = False
    plot: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The data that it cannot do without."""
        return tuple(name for name in ("squad", "squad2", "scifact") if f"{{{name}}}" in self.command)

    def shown(self, places: Mapping[str, str]) -> str:
        """The command as a reader would type it, without the files that it writes."""
        return " ".join(word.format(**places) if word.startswith("{") else shlex.quote(word) for word in self.command)


def programs(*, squad: bool, quick: bool, root: Path) -> list[Program]:
    """All programs, in the order in which they are begun; those whose file is not there are left out.

    Args:
        squad: whether the SQuAD articles are given; without them the demo's passages are used where that is possible.
        quick: sizes that only show that everything runs.
        root: of the repository.
    """
    listed = [*_timed(squad, quick), *_answers(squad, quick), *(_parts(quick) if squad else ())]
    return [program for program in listed if _is_there(program, root)]


def _is_there(program: Program, root: Path) -> bool:
    return program.command[0] != "python" or (root / program.command[1]).is_file()


def _n(quick: bool, full: str, small: str) -> Sequence[str]:
    return (small if quick else full).split()


def _timed(squad: bool, quick: bool) -> list[Program]:
    data = ("--squad", "{squad}") if squad and not quick else ()
    return [
        Program(
            "equal_budget",
            "Equal budget: classic RAG and NNM at the same time, and at the same tokens",
            ("python", "benchmarks/equal_budget.py", *data, "--store", "{store}",
             *_n(quick, "--questions 100 --timed 8 --read 1 2 4 --composed 1 2 4",
                 "--questions 4 --timed 1 --read 1 2 --composed 1 2")),
            900, alone=True, plot=True,
        ),
        Program(
            "ttft", "Time to the first token",
            ("python", "benchmarks/ttft.py",
             *_n(quick, "--repeats 5 --lengths 250 500 1000 2000", "--repeats 1 --lengths 100 200")),
            200, alone=True, plot=True,
        ),
        Program(
            "ingest", "What ingest costs",
            ("python", "benchmarks/ingest.py",
             *_n(quick, "--passages 12 --repeats 2", "--passages 4 --tokens 60 --repeats 1")),
            200, alone=True, plot=True,
        ),
        Program(
            "langchain_overhead", "What LangChain adds",
            ("python", "benchmarks/langchain_overhead.py", *_n(quick, "--repeats 5", "--repeats 1 --tokens 60")),
            120, alone=True,
        ),
        Program(
            "llamaindex_overhead", "What LlamaIndex adds",
            ("python", "benchmarks/llamaindex_overhead.py",
             *_n(quick, "--texts 16 --questions 8", "--texts 4 --questions 2")),
            120, alone=True,
        ),
        Program(
            "index_speed", "Search among many memories",
            ("python", "benchmarks/index_speed.py",
             *_n(quick, "--memories 30000 --questions 100", "--memories 500 --questions 5")), 150, alone=True,
        ),
    ]  # fmt: skip


def _answers(squad: bool, quick: bool) -> list[Program]:
    """Programs that measure no times and run side by side: the longest first, so that all lanes end together."""
    gate = ("nnm", "eval", "gate")
    data = ("--squad", "{squad}") if squad else ()
    # The memory of all passages that `equal_budget` has left: they need not be read twice. Found passages are its part.
    store = ("--store", "{store}") if squad and not quick else ()
    return [
        Program(
            "gate_needle", "Needles in long documents",
            (*gate, "needle", "--data", "{text}", "--arms", "read,nnm,composed",
             *_n(quick, "--lengths 2500,5000 --cases 100 --max-tokens 12 --batch 20",
                 "--lengths 800 --cases 2 --depths 2")),
            1300, plot=True,
        ),
        Program(
            "gate_needle_long", "Needles in longer documents",
            (*gate, "needle", "--data", "{text}", "--arms", "read,nnm",
             *_n(quick, "--lengths 8000 --cases 100 --max-tokens 12 --batch 10",
                 "--lengths 1600 --cases 2 --depths 2")),
            900, plot=True,
        ),
        Program(
            "exactness", "Is the exact tier exact?",
            ("python", "benchmarks/exactness.py", *_n(quick, "--prompts 500 --tokens 64", "--prompts 3 --tokens 30")),
            600,
        ),
        Program(
            "gate_qa", "Questions about their own passage",
            (*gate, "qa", "--data", "{questions}", "--passages", "oracle", *store,
             "--arms", "cold,oracle rag same order,oracle nnm,random",
             *_n(quick, "--limit 500 --max-tokens 16 --batch 50", "--limit 4 --max-tokens 8")),
            600, plot=True,
        ),
        Program(
            "original_claims", "The original project's claims, made again and put right",
            ("python", "benchmarks/original_claims.py", *data,
             *_n(quick, "--questions 50 --cases 18", "--questions 2 --cases 2 --limit 200")),
            300,
        ),
        Program(
            "eval_retrieval", "Retrieval: the original's small pool of SciFact",
            ("nnm", "eval", "retrieval", "{scifact}", "--only-subset", "--subset",
             *_n(quick, "50x250 --routes one-pass --no-tokens --no-rerank --labels 32",
                 "3x6 --labels 4 --no-tokens --no-rerank")),
            300,
        ),
        Program(
            "eval_citations", "Spans to cite, and when to abstain",
            ("nnm", "eval", "citations", "{squad2}",
             *_n(quick, "--passages 40 --questions 30", "--passages 6 --questions 4 --depth 2")),
            250,
        ),
        Program(
            "gate_multi", "Several memories in a prompt",
            (*gate, "multi", *_n(quick, "--cases 10 --batch 20", "--sizes 2 --cases 2")), 200, plot=True,
        ),
        Program(
            "gate_claims", "Claims: supported, contradicted or neither",
            (*gate, "claims", "--data", "{scifact}", *_n(quick, "--limit 50", "--limit 2")), 200, plot=True,
        ),
        Program(
            "gate_conversation", "Questions about long conversations",
            (*gate, "conversation", "--data", "{talks}",
             *_n(quick, "--limit 40 --max-tokens 16 --batch 20", "--limit 2")), 200, plot=True,
        ),
        Program(
            "gate_extraction", "Orders hidden in memories",
            (*gate, "extraction", "--data", "{text}",
             *_n(quick, "--carriers 3 --batch 18", "--carriers 1 --characters 300")),
            200, plot=True,
        ),
    ]  # fmt: skip


def _parts(quick: bool) -> list[Program]:
    """Parts that have larger measurements of their own: last, for what time is left."""
    return [
        Program(
            "codecs", "Codecs: bytes, quality, time",
            ("python", "benchmarks/codecs.py", "--data", "{squad}", *_n(quick, "--questions 24", "--questions 4")),
            180, alone=True, plot=True,
        ),
        Program(
            "composition", "Composers: several memories side by side",
            ("python", "benchmarks/composition.py", "--data", "{squad}", "--settings", "one needed",
             "--composers", "concatenate", "guided-offset",
             *_n(quick, "--memories 4 --questions 16", "--memories 2 --questions 4")),
            180, alone=True, plot=True,
        ),
    ]  # fmt: skip
