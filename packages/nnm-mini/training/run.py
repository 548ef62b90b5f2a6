"""The whole recipe by the clock: tokens, rows, training stages, self-written questions, export, evaluation.

python run.py --config configs/full.json --data DATA --work WORK --tokenizer tokenizer [--init STORED] [--files 4]
[--no-evaluation] [--writer MODEL]

With `--writer`, another open model writes the questions (`write_with_model.py`) from the start, and only the config's
stage `final` is trained, from the weights given by `--init`; training begins at the config's `run.train_at`, so that
its compilation falls into the writing. At the end `choose.py` takes the best of the config's `run.candidates`, which is
measured first; the run's end itself is measured too if that is over before `run.finish_by`.

Uses all GPUs (one process each) and all CPU cores. `--files`: how many Wikipedia files to wait for before the passages
for the question writer are cut; files may arrive while training already runs. Every stage resumes from its checkpoint
when the program is started again with the same WORK. Logs go to WORK/log.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from recipe.config import load

HERE = Path(__file__).parent
_DEALS = (
    ("squad,unanswerable",),
    ("distractors",),
    ("needle,facts,closed,perplexity",),
    ("independent", "--limit", "1500"),
)
"""Tasks of `evaluate.py` that one process measures, with its further arguments: each deal takes about as long."""


class Run:
    """Starts the programs beside this file and waits for them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.config = args, load(args.config)
        self.gpus = max(1, torch.cuda.device_count())
        self.cores = len(os.sched_getaffinity(0))
        self.common = ["--data", str(args.data), "--tokenizer", str(args.tokenizer)]
        (args.work / "log").mkdir(parents=True, exist_ok=True)
        self.clock_file = args.work / "clock"
        if not self.clock_file.exists():
            self.clock_file.write_text(str(time.time()))

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.time() - float(self.clock_file.read_text())

    def start(self, name: str, program: str, *arguments: str, everywhere: bool = False) -> subprocess.Popen[bytes]:
        """Start one program; with `everywhere` as one process a GPU."""
        command = [sys.executable]
        if everywhere and self.gpus > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.gpus)]
        command += [str(HERE / program), *arguments]
        environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"}
        if not everywhere:
            environment["OMP_NUM_THREADS"] = "1"
        if program in ("choose.py", "evaluate.py"):
            environment["NVIDIA_TF32_OVERRIDE"] = "1"  # several times faster than fp32 matrix products
        print(f"{self.elapsed():.0f} s: {name}", flush=True)
        log = (self.args.work / "log" / f"{name}.log").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait(self, name: str, process: subprocess.Popen[bytes], needed: bool = True) -> None:
        """Wait for a program; a failure of a needed one ends the run."""
        code = process.wait()
        print(f"{self.elapsed():.0f} s: {name} ended with {code}", flush=True)
        if code and needed:
            raise SystemExit(f"{name} failed: see {self.args.work / 'log' / name}.log")

    def rows(self, stage: str, processes: int, seconds: float, rows: int = 10**9) -> subprocess.Popen[bytes]:
        """Start making rows of one stage."""
        out = self.args.work / "rows" / stage
        arguments = ["--config", str(self.args.config), "--stage", stage, *self.common, "--out", str(out)]
        arguments += ["--written", str(self.args.work / "written"), "--processes", str(max(1, processes))]
        return self.start(f"rows-{stage}", "make_rows.py", *arguments, "--seconds", str(seconds), "--rows", str(rows))

    def files(self) -> int:
        """How many Wikipedia files have arrived."""
        return sum(file.suffix != ".part" for file in self.args.data.glob("wikipedia/*.txt*"))

    def passages(self) -> subprocess.Popen[bytes]:
        """Start cutting the passages that are written on."""
        out = str(self.args.work / "passages")
        wanted = self.config["run"]
        while self.files() < wanted.get("passages_files", 1) and self.elapsed() < wanted.get("passages_until", 1e9):
            time.sleep(0.2)
        arguments = ["--data", str(self.args.data), "--out", out, "--processes", str(max(1, self.cores // 2))]
        arguments += [
            "--share",
            str(wanted.get("article_share", 1.0)),
            "--per-article",
            str(wanted.get("per_article", 8)),
            "--notes",
            str(wanted.get("notes", 0.0)),
        ]
        return self.start("passages", "cut_passages.py", *arguments)

    def prepare(self) -> None:
        """Rows for watching, reading and tuning at once; tokens of each Wikipedia file when it is there; then
        passages."""
        wanted = self.config["run"]
        while not list(self.args.data.glob("wikipedia/*.txt*")):
            time.sleep(0.5)
        small = [
            self.rows(stage, 1, 1e9, wanted[f"{stage}_rows"])
            for stage in ("check", "tune")
            if wanted.get(f"{stage}_rows")
        ]
        if wanted["read_seconds"]:
            small.append(self.rows("read", self.cores * 2 // 5, wanted["read_seconds"], wanted["rows"]))
        passages = self.passages() if self.args.writer else None  # the other model waits for them
        done: set[Path] = set()
        part = 0
        while len(done) < self.args.files and self.elapsed() < wanted.get("files_until", 1e9):
            files = [
                f for f in sorted(self.args.data.glob("wikipedia/*.txt*")) if f not in done and f.suffix != ".part"
            ]
            if not files:
                time.sleep(0.5)
                continue
            arguments = [
                *self.common,
                "--out",
                str(self.args.work / "text"),
                "--processes",
                str(max(1, self.cores // 4)),
            ]
            name = f"tokenise-{part}"
            self.wait(name, self.start(name, "tokenize_corpus.py", *arguments, "--part", str(part), *map(str, files)))
            done.update(files)
            part += 1
        self.wait("passages", passages or self.passages())
        for process in small:
            process.wait()
        (self.args.work / "prepared").write_text("")

    def train(self, arguments: list[str]) -> None:
        """All stages, started a second time from the checkpoints if they die."""
        if self.start("train", "all_stages.py", *arguments, everywhere=True).wait():
            print("training died; once more", flush=True)
            self.wait("train", self.start("train", "all_stages.py", *arguments, everywhere=True), needed=False)

    def write_and_train(self, arguments: list[str], initial: list[str]) -> None:
        """The other model's questions, and beside them the beginning of the only stage."""
        more = ["--model", str(self.args.writer), "--data", str(self.args.data)]
        more += ["--passages", str(self.args.work / "passages"), "--out", str(self.args.work / "written")]
        more += ["--config", str(self.args.config), "--tuned", str(self.args.work / "tuned")]
        while not self.args.writer.exists():  # may arrive while passages are cut
            time.sleep(0.2)
        shards = self.config["write"].get("processes", 1)
        writing = [
            self.start(f"write-{shard}", "write_with_model.py", *more, "--shard", f"{shard}/{shards}")
            for shard in range(shards)
        ]
        while self.args.init and not (self.args.init / "manifest.json").exists():
            time.sleep(0.2)
        time.sleep(max(0.0, self.config["run"]["train_at"] - self.elapsed()))
        command = ("train", "train.py", *arguments[:4], "--stage", "final", *initial)
        if self.start(*command, everywhere=True).wait():
            print("training died; once more", flush=True)
            self.wait("train", self.start(*command, everywhere=True), needed=False)
        for shard, process in enumerate(writing):
            process.terminate()  # long since over, unless it hangs
            self.wait(f"write-{shard}", process, needed=False)

    def warm_up(self, arguments: list[str]) -> None:
        """Fill the compiler's cache for the question writer beside the running training."""
        more = ["--init", "none", "--warm-up"]
        self.wait(
            "warm-up", self.start("warm-up", "write_questions.py", *arguments, *more, everywhere=True), needed=False
        )

    def export(self, stage: str) -> None:
        """Stored weights of a stage in WORK/export-<stage>, expanded ones in WORK/model-<stage>."""
        work = self.args.work
        arguments = ["--config", str(self.args.config), "--checkpoint", str(work / f"{stage}.pt")]
        arguments += ["--tokenizer", str(self.args.tokenizer), "--out", str(work / f"export-{stage}")]
        name = f"export-{stage}"
        self.wait(
            name, self.start(name, "export.py", *arguments, "--expanded", str(work / f"model-{stage}")), needed=False
        )

    def everything(self) -> None:
        """All stages in order."""
        wanted = self.config["run"]
        preparation = threading.Thread(target=self.prepare, daemon=True)
        if not (self.args.work / "prepared").exists():
            preparation.start()
        arguments = [
            "--config",
            str(self.args.config),
            "--work",
            str(self.args.work),
            "--tokenizer",
            str(self.args.tokenizer),
        ]
        initial = ["--init", str(self.args.init)] if self.args.init else []
        if self.args.writer:
            training = threading.Thread(target=self.write_and_train, args=(arguments, initial))
        else:
            training = threading.Thread(target=self.train, args=([*arguments, *initial],))
        training.start()
        if torch.cuda.is_available() and not self.args.writer:
            threading.Timer(wanted["warm_up_at"], self.warm_up, [arguments]).start()
        while not list((self.args.work / "written").glob("*.jsonl")) and training.is_alive():
            time.sleep(0.5)
        # The first questions are few: rows that are made at once would repeat them.
        time.sleep(max(0.0, wanted.get("rows_at", 0.0) - self.elapsed()))
        if not training.is_alive():
            raise SystemExit(f"no question was written: see {self.args.work / 'log'}")
        sources = {name for phase in self.config["train"]["stages"]["final"]["phases"] for name in phase["sources"]}
        makers = [
            self.rows(name, self.cores * 3 // 5 // len(sources), wanted["main_seconds"], wanted["rows"])
            for name in sorted(sources)
        ]
        choosing = None
        if "candidates" in wanted and self.args.init:
            while self.elapsed() < wanted["choose_at"] and training.is_alive():
                time.sleep(0.5)
            choosing = self.choose()
        training.join()
        (self.args.work / "trained").write_text("")
        for maker in makers:
            maker.terminate()
        if choosing:
            self.wait("choose", choosing, needed=False)
        measured = self.args.evaluation and choosing is not None and self.evaluate("chosen")
        self.export("final")
        if self.args.evaluation and (not measured or self.elapsed() < wanted.get("finish_by", 1e9) - 130):
            self.evaluate("final")

    def choose(self) -> subprocess.Popen[bytes]:
        """Start choosing; it waits for the end of training."""
        work = self.args.work
        arguments = ["--config", str(self.args.config), "--work", str(work), "--init", str(self.args.init)]
        arguments += ["--tokenizer", str(self.args.tokenizer), "--out", str(work / "chosen")]
        arguments += ["--expanded", str(work / "model-chosen"), "--report", str(work / "choice.json")]
        if self.args.writer:
            arguments += ["--written", str(work / "written-held-out")]
        return self.start("choose", "choose.py", *arguments, "--after", str(work / "trained"))

    def evaluate(self, which: str) -> bool:
        """The measurements of WORK/model-<which>, the tasks dealt to the GPUs; false without such a model."""
        model = self.args.work / f"model-{which}"
        if not model.exists():
            return False
        processes = []
        for number, (tasks, *more) in enumerate(_DEALS):
            arguments = ["--model", str(model), "--data", str(self.args.data), "--samples", "40", *more]
            arguments += ["--json", str(self.args.work / f"scores-{which}-{number}.json"), "--tasks", tasks]
            if torch.cuda.is_available():
                arguments += ["--device", f"cuda:{number % self.gpus}", "--budget", "120000"]
            if self.config["run"].get("sample"):
                arguments += ["--limit", str(self.config["run"]["sample"])]
            name = f"evaluate-{which}-{number}"
            processes.append((name, self.start(name, "evaluate.py", *arguments)))
        for name, process in processes:
            self.wait(name, process, needed=False)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "data", "work", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="stored weights to start from instead of random ones")
    parser.add_argument("--writer", type=Path, help="folder of another open model that writes the questions")
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--evaluation", action=argparse.BooleanOptionalAction, default=True)
    Run(parser.parse_args()).everything()
    print("done", flush=True)


if __name__ == "__main__":
    main()
