"""The whole measurement: every program, one results file, one page.

    make bench DATA=folder                 # or: python benchmarks/run_all.py --data folder
    make bench QUICK=1                     # small sizes: shows that everything runs, measures nothing

`--data` holds ``squad/dev-v1.1.json`` and ``dev-v2.0.json``, ``scifact/`` in BEIR's layout and, if there is one,
``locomo.json``; each may be compressed. Without it the passages that ship with the demo are used where that is
possible, and generated conversations where there is no LoCoMo; the page says so.
Programs that measure times run alone, with all cores; the others `--jobs` at a time, which share the
cores. A program that fails or takes too long stops no other.
What has a result of the same command and the same model weights is not run again, so an interrupted run goes on where
it was; `--again` measures everything anew. After `--minutes` it is over: what still runs is stopped and the rest left
out; what takes long comes first among those that run side by side.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench_programs import QUICK_LIMIT, Program, programs
from made_conversations import conversations
from results_page import for_readme, write_page

from nnm_core.demo import dataset
from nnm_core.evaluation.benchmark import versions

ROOT = Path(__file__).parents[1]
# Programs at a time that measure no times, at most; a small model gains little from more threads than one.
MOST_JOBS = 4
# With less time than this left no program is begun.
LEAST = 30
# For glibc: long prompts are read in passes whose buffers would be given back to the system and faulted in again. Only
# where no times are measured: those are to be what a user sees.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
# Parts of a result that are long and belong to the program's own file.
LONG = ("items", "runs")


@dataclass
class Bench:
    """One run of everything.

    Attributes:
        options: of the command line.
        places: what the words in braces stand for.
        shown: the same, as a reader sees it.
        results: name of a program -> its record.
        done: programs that this run has dealt with; the results of the others are an earlier run's.
    """

    options: argparse.Namespace
    places: dict[str, str]
    shown: dict[str, str]
    started: float = field(default_factory=time.perf_counter)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    interrupted: bool = False

    @property
    def file(self) -> Path:
        """Where all results are."""
        return Path(self.options.out) / "results.json"

    @property
    def left(self) -> float:
        """Seconds until everything has to be over."""
        return 60 * float(self.options.minutes) - (time.perf_counter() - self.started)

    def run(self, listed: Sequence[Program]) -> None:
        """Run what has no fresh result, in order: one by one what measures times, in lanes what does not."""
        cores = os.cpu_count() or 1
        for alone, group in groupby(listed, key=lambda program: program.alone):
            width = 1 if alone else self.options.jobs
            with ThreadPoolExecutor(width) as lanes:
                try:
                    list(lanes.map(partial(self.one, threads=max(1, cores // width)), group))
                except BaseException:
                    self.interrupted = True
                    lanes.shutdown(wait=False, cancel_futures=True)
                    for process in list(self.running):
                        os.killpg(process.pid, signal.SIGKILL)
                    raise

    def one(self, program: Program, *, threads: int) -> None:
        """Run one program and record what came of it."""
        record = self.record(program, threads)
        known = self.results.get(program.name, {})
        missing = [name for name in program.needs if name not in self.places]
        if missing:
            self.keep(program, record | {"status": "skipped", "reason": f"needs {', '.join(missing)} (DATA=folder)"})
        elif known.get("status") == "ok" and known.get("stamp") == record["stamp"] and not self.options.again:
            self.tell(f"{program.name}: has a fresh result")
        elif self.left < min(LEAST, record["limit"]):
            self.keep(program, record | {"status": "skipped", "reason": "no time was left"})
        else:
            limit = int(min(record["limit"], self.left))
            self.tell(f"{program.name}: begins (at most {limit} s)")
            self.keep(program, record | self.execute(program, limit, threads))

    def record(self, program: Program, threads: int) -> dict[str, Any]:
        """What is known of a program before it runs."""
        command = program.shown(self.shown)
        made_of = [command, weights_digest(self.options.model), str(sorted(versions().items()))]
        return {
            "title": program.title,
            "command": command,
            "threads": threads,
            "limit": min(program.limit, QUICK_LIMIT) if self.options.quick else program.limit,
            "stamp": hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16],
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def execute(self, program: Program, limit: int, threads: int) -> dict[str, Any]:
        """Run it in a process of its own; its output goes to a log."""
        out = Path(self.options.out)
        target, log = out / f"{program.name}.json", out / "logs" / f"{program.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        words = [_place(word, self.places) for word in program.command]
        words[0] = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
        if self.options.model:
            words += ["--model", self.options.model]
        words += ["--json", str(target)]
        if program.plot:
            words += ["--plot", str(out / "plots" / f"{program.name}.png")]
            (out / "plots").mkdir(exist_ok=True)
        started = time.perf_counter()
        environment = {"OMP_NUM_THREADS": str(threads)} | ({} if program.alone else KEEP_MEMORY)
        code = run_limited(words, limit, log, environment, self.running)
        seconds = time.perf_counter() - started
        if self.interrupted:
            return {"seconds": round(seconds, 1), "status": "stopped", "reason": "interrupted"}
        return {"seconds": round(seconds, 1), "load": os.getloadavg()[0], **outcome(code, limit, target, log)}

    def keep(self, program: Program, record: dict[str, Any]) -> None:
        """Write the record to the results file at once, so that nothing is lost."""
        took = f" after {record['seconds']:.0f} s" if "seconds" in record else ""
        self.tell(f"{program.name}: {record['status']}{took} {record.get('reason', '')}".rstrip())
        with self.lock:
            self.results[program.name] = record
            self.done.add(program.name)
            document = {"config": self.config(), "programs": self.results}
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
            part.replace(self.file)

    def config(self) -> dict[str, Any]:
        """Machine, versions, date, data."""
        return {
            **machine(),
            "model": self.options.model or "nnm-mini",
            "weights": weights_digest(self.options.model)[:12],
            "data": sorted(name for name in ("squad", "scifact", "locomo") if name in self.places),
            "quick": self.options.quick,
            "jobs": self.options.jobs,
            "whole": self.done >= self.results.keys() and all(r["status"] == "ok" for r in self.results.values()),
            "seconds": round(time.perf_counter() - self.started, 1),
        }

    def tell(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.perf_counter() - self.started:6.0f} s] {text}", flush=True)


def _place(word: str, places: Mapping[str, str]) -> str:
    return places[word[1:-1]] if word.startswith("{") else word


def run_limited(
    words: Sequence[str],
    limit: int,
    log: Path,
    environment: Mapping[str, str],
    running: list[subprocess.Popen[bytes]],
) -> int | None:
    """The exit code, or None if the process had to be stopped; it goes with everything that it has started.

    While it runs it stands in `running`.
    """
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(  # noqa: S603 - the words are ours
            list(words),
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "COLUMNS": "120"},
            start_new_session=True,
        )
        running.append(process)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        finally:
            running.remove(process)


def outcome(code: int | None, limit: int, target: Path, log: Path) -> dict[str, Any]:
    """Status, reason and result of a program that has ended."""
    if code is None:
        return {"status": "stopped", "reason": f"took more than {limit} s", "log": _tail(log)}
    try:
        result = json.loads(target.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {"status": "failed", "reason": f"exit code {code}", "log": _tail(log)}
    kept = {key: value for key, value in result.items() if key not in LONG}
    # A gate whose check fails leaves with 1 and has a result all the same: that is a finding, no breakdown.
    if code and not (code == 1 and result.get("passed") is False):
        return {"status": "failed", "reason": f"exit code {code}", "result": kept, "log": _tail(log)}
    return {"status": "ok", "result": kept}


def _tail(log: Path, characters: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import torch

    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = found[0] if found else name
    return {
        "cpu": name or platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def weights_digest(model: str | None) -> str:
    """Names the weights: a digest of the bundled model's manifest, or the model's name."""
    spec = find_spec("nnm_mini")
    if model not in (None, "nnm-mini") or spec is None or not spec.submodule_search_locations:
        return hashlib.sha256(str(model).encode()).hexdigest()
    manifest = Path(next(iter(spec.submodule_search_locations))) / "weights" / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def data_places(folder: Path | None, out: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the words in braces stand for, and how they are shown."""
    places, shown = {}, {}
    wanted = {
        "squad": "squad/dev-v1.1.json",
        "squad2": "squad/dev-v2.0.json",
        "scifact": "scifact",
        "locomo": "locomo.json",
    }
    for name, inside in wanted.items():
        for ending in ("", ".gz", ".xz", ".bz2") if folder else ():
            path = Path(folder or "") / f"{inside}{ending}"
            if path.exists():
                places[name] = str(path.resolve())
                break
        shown[name] = f"DATA/{inside}"
    text = out / "text" / "passages.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n\n".join(passages(places.get("squad"))), encoding="utf-8")
    places["questions"], shown["questions"] = places.get("squad", ""), shown["squad"]
    if "squad" not in places:
        asked = out / "text" / "questions.jsonl"
        asked.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_rows()), encoding="utf-8")
        places["questions"], shown["questions"] = str(asked.resolve()), "OUT/text/questions.jsonl"
    places["talks"], shown["talks"] = places.get("locomo", ""), shown["locomo"]
    if "locomo" not in places:
        talks = out / "text" / "conversations.json"
        talks.write_text(json.dumps(conversations(), indent=1), encoding="utf-8")
        places["talks"], shown["talks"] = str(talks.resolve()), "OUT/text/conversations.json"
    for name, path in {"text": text, "store": out / "store", "out": out}.items():
        places[name], shown[name] = str(path.resolve()), f"OUT/{path.relative_to(out)}" if path != out else "OUT"
    return places, shown


def passages(squad: str | None) -> list[str]:
    """The text that needles and orders are hidden in."""
    if squad is None:
        return [passage.text for passage in dataset.passages()]
    from nnm_core.evaluation.datasets.load import load_questions

    return list(load_questions(squad).passages.values())


def demo_rows() -> list[dict[str, Any]]:
    """The demo's questions, each with its passage."""
    texts = {passage.id: passage.text for passage in dataset.passages()}
    return [
        {"id": item.id, "question": item.question, "answers": item.answers, "context": texts[item.passage]}
        for item in dataset.questions()
    ]


def main() -> None:
    """Run everything and write the page."""
    options = _options()
    # Being ended is like Ctrl-C: what runs goes, too, and what is done is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    places, shown = data_places(options.data, out)
    bench = Bench(options, places, shown)
    if bench.file.is_file():
        bench.results = json.loads(bench.file.read_text(encoding="utf-8"))["programs"]
    listed = programs(squad="squad" in places, quick=options.quick, root=ROOT)
    unknown = set(options.only or ()) - {program.name for program in listed}
    if unknown:
        raise SystemExit(f"No program is called {', '.join(sorted(unknown))}.")
    bench.run([program for program in listed if not options.only or program.name in options.only])
    bench.results = {p.name: bench.results[p.name] for p in listed if p.name in bench.results}
    document = {"config": bench.config(), "programs": bench.results}
    bench.file.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
    page = options.page or out / "results.md"
    write_page(bench.file, page, plots=out / "plots", elsewhere=ROOT / "docs/results/elsewhere")
    failed = [name for name, record in bench.results.items() if record["status"] in ("failed", "stopped")]
    if options.page and (said := for_readme(document)):
        bench.tell(f"For the README: {said}")
    bench.tell(f"{page} and {bench.file} are written; " + (f"no result: {', '.join(failed)}" if failed else "all ran"))
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="folder with squad/, scifact/ and perhaps locomo.json")
    options.add_argument("--out", type=Path, default=Path("out/bench"), help="where results, logs and plots go")
    options.add_argument("--page", type=Path, help="the page; default: results.md beside the results")
    options.add_argument("--model", help="another model than nnm-mini")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these programs")
    options.add_argument("--again", action="store_true", help="also what has a fresh result")
    options.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs")
    options.add_argument("--minutes", type=float, default=39, help="after so long it is over, whatever is missing")
    options.add_argument(
        "--jobs", type=int, metavar="N",
        help=f"programs at a time that measure no times; default: one a core, at most {MOST_JOBS}, 1 with --model",
    )  # fmt: skip
    found = options.parse_args()
    if found.jobs is None:
        found.jobs = 1 if found.model else min(MOST_JOBS, os.cpu_count() or 1)
    if found.jobs < 1:
        options.error("--jobs takes a number from 1 on")
    return found


if __name__ == "__main__":
    main()
