"""How much sooner does the first token come on a GPU when a memory is injected instead of read, and what limits it?

    python benchmarks/ttft_gpu.py --json out/ttft_gpu.json

A model in the shape of Qwen2.5-7B with random weights (times do not depend on what they say; no download, no
tokenizer) is given a memory of 1k to 32k tokens and a question of 64. Each turn measures, in one process:

read          the memory's tokens are read with the question, as in ordinary RAG
gpu           the memory's state is still on the GPU from an earlier answer
ram           its state lies in pinned memory (a store without a path)
page cache    its state is a file that the system still holds in memory and that was verified before
disk          the same file, thrown out of the page cache
first use     the same file, thrown out of the page cache and never verified: its checksum is compared, too
plain         like `ram`, with the question read kernel by kernel from Python: what CUDA graphs are worth
int8, int4    like `ram`, in that codec; it is decoded on the GPU; ``int8 file`` is in the page cache, ``int8 disk`` is
              thrown out of it before each turn

Loading is part of every figure: finding the state in its store, decoding, copying, rotating, reading the question,
and fetching the first token. The floor is what no program can beat here: the larger of the state's bytes over the
measured bus and the weights' bytes over the measured memory bandwidth, since the two overlap. For `disk` it is the
state's bytes over what 16 threads read at once from a file of the same folder that is not in the page cache.

A length or an arm that fails is named in the report (`failures`), and the rest is measured; the report is written after
every length.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from random_models import SHAPES, random_model

from nnm_core.evaluation.benchmark import command
from nnm_core.injection.costs import evict
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.prefill import forward, prefill
from nnm_core.injection.static import static_forward
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import embedding_weight
from nnm_core.model.prompt import Segment
from nnm_core.records import Memory
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.codecs import Reader, make_codec, manifest_of
from nnm_core.states.state import PlacedState, State
from nnm_core.storage.blobs import BlobStore, open_blobs

SUFFIX, DECODED = 64, 64
MEMORY = Memory("m", "", {}, "benchmark")


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--shape", choices=SHAPES, default="7b")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192, 16384, 32768])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--codecs", nargs="*", default=["int8", "int4"], help="codecs beside native")
    options.add_argument("--disk-to", type=int, default=32768, help="longest memory that is also kept in files")
    options.add_argument("--seconds", type=float, default=1e9, help="measure no further length after so long")
    options.add_argument("--folder", type=Path, default=None, help="where files of states are written (a real disk)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    arguments = options.parse_args()
    began = time.perf_counter()
    model = random_model(arguments.shape, torch.device(arguments.device), getattr(torch, arguments.dtype))
    machine = ceilings(model)
    say(f"{machine['device']}: model after {time.perf_counter() - began:.0f} s; {json.dumps(machine)}")
    report: dict[str, Any] = {
        "arms": {},
        "floor": {},
        "decode": {},
        "agreement": {},
        "failures": {},
        "config": config(arguments, machine),
    }
    with tempfile.TemporaryDirectory(prefix="nnm-ttft-", dir=arguments.folder) as folder:
        if machine["bus"]:
            machine["disk"] = report["config"]["ceilings"]["disk"] = disk_speed(Path(folder))
        for length in arguments.lengths:
            if time.perf_counter() - began > arguments.seconds or broken(model):
                report["config"]["stopped_before"] = length
                break
            one_length(model, length, Path(folder), arguments, machine, report)
            say(f"{length} tokens after {time.perf_counter() - began:.0f} s; {report['config']['graphs']}")
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(summary(report), indent=1))
    show(summary(report))
    if report["failures"]:
        raise SystemExit(f"failed: {report['failures']}")


def one_length(
    model: LoadedModel,
    length: int,
    folder: Path,
    arguments: argparse.Namespace,
    machine: Mapping[str, Any],
    report: dict[str, Any],
) -> None:
    """All that is measured of one length; what fails is said in the report, and the next length is tried."""
    static = static_forward(model)
    try:
        subject = Subject(model, length, folder, arguments.codecs, arguments.disk_to)
        measure(subject, arguments.repeats, machine, report)
    except RuntimeError as error:
        failed(report, length, "all", error)
    gc.collect()
    report["config"]["graphs"] = {
        "refusal": static.refusal, "captured": static.captures, "replayed": static.replays,
    }  # fmt: skip


def failed(report: dict[str, Any], length: int, what: str, error: Exception) -> None:
    """Note and print an error."""
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    report["failures"].setdefault(str(length), {})[what] = text
    say(f"{length} tokens, {what}: {text}")


def broken(model: LoadedModel) -> bool:
    """Whether the GPU answers no more, as after an illegal access."""
    try:
        synchronize(model)
    except RuntimeError:
        return True
    return False


def ceilings(model: LoadedModel) -> dict[str, Any]:
    """What the machine can move: bytes a second over the bus and within the GPU, and what there is to move."""
    weights = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    embedding = embedding_weight(model.hf)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor(),
        "weights_bytes": weights - embedding.numel() * embedding.element_size(),
    }
    if model.device.type != "cuda":
        return found | {"bus": None, "memory": None}
    host = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(2**30, dtype=torch.uint8, device=model.device)
    other = torch.empty_like(there)
    found["bus"] = 2**30 / timed(model, lambda: there.copy_(host, non_blocking=True), 3)
    found["memory"] = 2**31 / timed(model, lambda: other.copy_(there), 5)
    return found


def disk_speed(folder: Path, nbytes: int = 2**30, threads: int = 16) -> float:
    """Bytes a second of a file that is not in the page cache, read by many threads at once."""
    path = folder / "speed"
    path.write_bytes(os.urandom(2**24) * (nbytes // 2**24))
    evict(path)
    descriptor, piece = os.open(path, os.O_RDONLY), 2**22
    try:
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            read = sum(pool.map(lambda start: len(os.pread(descriptor, piece, start)), range(0, nbytes, piece)))
        return read / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()


def timed(model: LoadedModel, work: Callable[[], Any], repeats: int) -> float:
    """Seconds of `work`, the GPU's part included; median, after one turn that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(model)
        began = time.perf_counter()
        work()
        synchronize(model)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def synchronize(model: LoadedModel) -> None:
    """Wait for the GPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@dataclass
class Subject:
    """One memory of a given length: its tokens, its state in two stores, and the ways to answer with it."""

    model: LoadedModel
    length: int
    folder: Path
    more_codecs: Sequence[str] = ()
    disk_to: int = 32768

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.length)
        size = int(self.model.hf.config.vocab_size)
        ids = torch.randint(0, size, (self.length + SUFFIX,), generator=generator).tolist()
        self.memory = Segment(tuple(ids[: self.length]), MEMORY)
        self.segments = [self.memory, Segment(tuple(ids[self.length :]), None)]
        self.reader = Reader(self.model, lambda: EMPTY)
        self.codecs = {name: make_codec(name) for name in ("native", *self.more_codecs)}
        state = capture(self.model, [self.memory.ids])[0]
        self.placed = placed(self.model, state)
        self.bytes = state.nbytes
        self.files = self.folder / str(self.length)
        self.stores: dict[str, BlobStore] = {"ram": open_blobs(None)}
        if self.length <= self.disk_to:
            self.stores["disk"] = open_blobs(self.files)
        for name, codec in self.codecs.items():
            tensors = codec.encode(state)
            for store in self.stores.values():
                store.put(name, tensors, manifest_of(state, codec, self.model.fingerprint))

    def read(self) -> Plan:
        """Everything is read."""
        return read_plan(self.segments)

    def held(self) -> Plan:
        """The state is on the GPU, placed."""
        return self._plan(lambda: self.placed)

    def stored(self, where: str, codec: str = "native") -> Plan:
        """The state comes from a store."""
        return self._plan(lambda: self.load(self.stores[where], codec))

    def first_use(self) -> Plan:
        """The state comes from a store that this process has just opened."""
        store = open_blobs(self.files)
        return self._plan(lambda: self.load(store, "native"))

    def load(self, store: BlobStore, codec: str) -> PlacedState:
        """Find, decode and place the state."""
        blob = store.get(codec)
        state = None if blob is None else self.codecs[codec].decode(blob.tensors, blob.manifest, self.reader)
        if state is None:
            raise RuntimeError("the state is gone")
        return place(self.model, state, 0)

    def _plan(self, found: Callable[[], PlacedState]) -> Plan:
        plan = make_plan(self.segments, "exact", lambda segment, left, start: found(), lambda *_: None)
        if plan.tokens_injected != self.length:
            raise RuntimeError("the memory would be read")
        return plan

    def evict(self, codec: str) -> None:
        """Throw a codec's file out of the page cache, and no other."""
        for path in self.files.rglob(f"{codec}.safetensors"):
            evict(path)

    def close(self) -> None:
        """Free RAM and disk."""
        for store in self.stores.values():
            store.delete(list(self.codecs))
            store.close()


def placed(model: LoadedModel, state: State) -> PlacedState:
    """The state as the tree of states keeps it after an answer: on the GPU, rotated, in one block."""
    keys = model.positions.place([key for key, _ in state.layers], 0)
    pairs = zip(keys, (value for _, value in state.layers), strict=True)
    block = torch.stack([torch.stack(pair) for pair in pairs])
    return PlacedState(state.chain, len(state.token_ids), tuple((key, value) for key, value in block))


def answer(model: LoadedModel, plan: Callable[[], Plan], decoded: int = 0) -> tuple[float, float, list[int]]:
    """(seconds to the first token, seconds for each of the `decoded` tokens after it, all tokens), greedy."""
    synchronize(model)
    began = time.perf_counter()
    with torch.inference_mode():
        cache, logits = prefill(model, plan(), room=DECODED)
        tokens = [int(logits.argmax())]
        first = time.perf_counter() - began
        for _ in range(decoded):
            tokens.append(int(forward(model, cache, tokens[-1:]).argmax()))
    return first, (time.perf_counter() - began - first) / max(decoded, 1), tokens


class NoGraphs:
    """Stands where a model's static passes are looked for, and has none."""

    def lend(self, capacity: int) -> None:
        """No buffers, whatever is asked for."""


def plainly(model: LoadedModel) -> LoadedModel:
    """The same model without static passes."""
    return replace(model, workspace={**model.workspace, "static": NoGraphs()})


# (the model that answers, the plan, which codec's file is thrown out of the page cache before)
Way = tuple[LoadedModel, Callable[[], Plan], str]


def _arms(subject: Subject, plain: LoadedModel) -> dict[str, Way]:
    model = subject.model
    arms: dict[str, Way] = {
        "read": (model, subject.read, ""),
        "gpu": (model, subject.held, ""),
        "ram": (model, lambda: subject.stored("ram"), ""),
        "page cache": (model, lambda: subject.stored("disk"), ""),
        "disk": (model, lambda: subject.stored("disk"), "native"),
        "first use": (model, subject.first_use, "native"),
        "plain": (plain, lambda: subject.stored("ram"), ""),
    }
    for codec in subject.more_codecs:
        arms[codec] = (model, partial(subject.stored, "ram", codec), "")
        arms[f"{codec} file"] = (model, partial(subject.stored, "disk", codec), "")
        arms[f"{codec} disk"] = (model, partial(subject.stored, "disk", codec), codec)
    if "disk" in subject.stores:
        return arms
    return {name: arm for name, arm in arms.items() if not name.endswith(("disk", "file", "cache", "first use"))}


def measure(subject: Subject, repeats: int, machine: Mapping[str, Any], report: dict[str, Any]) -> None:
    """All arms for one length, in turns."""
    model = subject.model
    plain = plainly(model) if model.device.type == "cuda" else model
    arms = _arms(subject, plain)
    length = str(subject.length)
    cold: dict[str, float] = {}
    for name, (with_model, plan, _) in list(arms.items()):  # capture, pinned buffers, autotuning: not in the figures
        try:
            cold[name] = answer(with_model, plan, 1)[0]
        except RuntimeError as error:
            failed(report, subject.length, name, error)
            del arms[name]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats):
        for name in list(arms) if turn % 2 == 0 else reversed(list(arms)):
            with_model, plan, evicted = arms[name]
            if evicted:
                subject.evict(evicted)
            seconds[name].append(answer(with_model, plan)[0])
    for name, values in seconds.items():
        report["arms"].setdefault(name, {})[length] = values
    report["floor"][length] = {"bytes": subject.bytes, "first_call": cold}
    report["floor"][length] |= floor(subject, machine)
    if subject.length <= 16384:
        decode(subject, plain, report)
    subject.close()


def floor(subject: Subject, machine: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that the bytes take at least, and what the two halves of the work take alone."""
    model = subject.model
    if not machine["bus"]:
        return {}
    found = {
        "bus": subject.bytes / machine["bus"],
        "weights": machine["weights_bytes"] / machine["memory"],
        "disk": subject.bytes / machine["disk"],
    }
    static = static_forward(model)
    lent = static.lend(subject.length + SUFFIX + DECODED)
    if lent is None:
        return found
    state = subject.load(subject.stores["ram"], "native")

    def bring() -> None:
        lent.advance(0)
        state.copy_into(lent)
        lent.arrive()

    def ask() -> None:
        lent.advance(subject.length)
        static.run(lent, subject.segments[1].ids)

    with torch.inference_mode():
        return found | {"copy_alone": timed(model, bring, 3), "question_alone": timed(model, ask, 5)}


def decode(subject: Subject, plain: LoadedModel, report: dict[str, Any]) -> None:
    """Seconds a decoded token after reading and after injecting, in turns, and whether the tokens are the same."""
    model, length = subject.model, str(subject.length)
    ways = {
        "read": (model, subject.read), "injected": (model, lambda: subject.stored("ram")),
        "injected, plain": (plain, lambda: subject.stored("ram")),
    }  # fmt: skip
    tokens: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(3):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            with_model, plan = ways[name]
            if turn and with_model is plain:
                continue
            _, each, tokens[name] = answer(with_model, plan, DECODED)
            seconds[name].append(each)
    report["decode"][length] = seconds | {
        "ratio": statistics.median(a / b for a, b in zip(seconds["injected"], seconds["read"], strict=True))
    }
    report["agreement"][length] = {
        f"{one} = {other}": same_prefix(tokens[one], tokens[other])
        for one, other in (("injected", "read"), ("injected, plain", "read"), ("injected", "injected, plain"))
    }


def same_prefix(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of tokens before the first difference."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return same / len(one)


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, ratios to reading, and the length from which injecting pays."""
    arms = {name: {n: statistics.median(v) for n, v in row.items()} for name, row in report["arms"].items()}
    reading = arms.get("read", {})
    ratios = {
        name: {n: statistics.median(r / v for r, v in zip(report["arms"]["read"][n], values, strict=True))
               for n, values in row.items() if n in reading}
        for name, row in report["arms"].items() if name != "read"
    }  # fmt: skip
    pays = {
        name: next((int(n) for n in sorted(row, key=int) if n in reading and row[n] < reading[n]), None)
        for name, row in arms.items() if name != "read"
    }  # fmt: skip
    return {
        **report,
        "arms": {name: {"seconds_to_first_token": row} for name, row in arms.items()},
        "runs": report["arms"],
        "ratio": ratios,
        "shortest_measured_that_pays": pays,
    }


def config(arguments: argparse.Namespace, machine: Mapping[str, Any]) -> dict[str, Any]:
    """With what the result was made."""
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "machine": machine["device"], "ceilings": dict(machine), "model": f"{arguments.shape} shape, random weights",
        "command": command(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "suffix": SUFFIX, "decoded": DECODED, "threads": torch.get_num_threads(),
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    """The table, as text."""
    for n, row in report["floor"].items():
        row = {key: 1000 * value for key, value in row.items() if isinstance(value, float)} | {"MB": row["bytes"] / 1e6}
        lowest = max(row.get("bus", 0), row.get("weights", 0))
        say(
            f"{n} tokens, {row['MB']:.0f} MB; ms: floor {lowest:.1f}, "
            + ", ".join(f"{k} {v:.1f}" for k, v in row.items())
        )
        for name, arm in report["arms"].items():
            if n not in arm["seconds_to_first_token"]:
                continue
            known = report["ratio"].get(name, {}).get(n)
            ratio = "" if known is None else f"{known:6.1f} x"
            say(f"    {name:12} {1000 * arm['seconds_to_first_token'][n]:9.1f} ms {ratio}")
    for n, row in report["decode"].items():
        each = {name: round(1000 * statistics.median(values), 2) for name, values in row.items() if name != "ratio"}
        say(f"decoding at {n}: ms a token {each}, injected / read {row['ratio']:.3f}")
        say(f"  the same tokens up to the first difference: {report['agreement'][n]}")
    say(f"injecting pays from (shortest measured): {report['shortest_measured_that_pays']}")
    say(f"graphs: {report['config'].get('graphs')}")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True, file=sys.stdout)


if __name__ == "__main__":
    main()
