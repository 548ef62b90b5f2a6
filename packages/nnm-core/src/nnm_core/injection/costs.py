"""What reading, loading and composing cost on this machine with this model, measured once and kept."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers

from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose import Composer, Composition, composer, names
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.prefill import prefill
from nnm_core.model.fingerprint import digest
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import embedding_weight
from nnm_core.model.prompt import Segment
from nnm_core.records import Memory
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.codecs import CODECS, Codec, Reader, make_codec, manifest_of
from nnm_core.states.state import PlacedState, State
from nnm_core.storage.blobs import BlobStore, open_blobs

logger = logging.getLogger(__name__)

LENGTHS = (32, 128, 512)
QUESTION = 24
_REPEATS = 2
# No longer memories are measured once one reading takes so many seconds.
_PATIENCE = 4.0
_LONGEST = 8192
_CLEARLY = 0.95
SWITCH = "NNM_COSTS"
"""This environment variable says ``off`` where what was measured earlier is not to be used, and nothing kept."""


@dataclass(frozen=True)
class Curve:
    """Seconds over tokens: straight lines between measured points, the outer ones continued.

    Attributes:
        points: (tokens, seconds), at least one, by tokens.
    """

    points: tuple[tuple[int, float], ...]

    def __call__(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        if len(self.points) == 1:
            return self.points[0][1]
        right = min(max(bisect_left([n for n, _ in self.points], tokens), 1), len(self.points) - 1)
        (n0, s0), (n1, s1) = self.points[right - 1], self.points[right]
        return max(0.0, s0 + (s1 - s0) * (tokens - n0) / (n1 - n0))


@dataclass(frozen=True)
class Costs:
    """Seconds until the first token of a prompt with one memory and a question of `QUESTION` tokens.

    Attributes:
        read: the memory is read.
        load: its state is loaded, by ``<codec> <ram or disk>``, and the question read.
        compose: two memories that together have so many tokens are placed side by side, by composer.
        made: with what and when this was measured; ``file`` says where it is kept, if it is.
    """

    read: Curve
    load: Mapping[str, Curve]
    compose: Mapping[str, Curve] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)

    def pays(self, other: Curve, tokens: int) -> bool:
        """Whether `other` is faster than reading, by more than measuring is uncertain."""
        return other(tokens) < _CLEARLY * self.read(tokens)

    def break_even(self, other: Curve) -> int | None:
        """The shortest length from which on `other` always pays; None if there is none."""
        shortest = None
        for tokens in range(_LONGEST, 0, -1):
            if not self.pays(other, tokens):
                break
            shortest = tokens
        return shortest

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "read": self.read.points,
            "load": {name: curve.points for name, curve in self.load.items()},
            "compose": {name: curve.points for name, curve in self.compose.items()},
            "made": {name: value for name, value in self.made.items() if name != "file"},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Costs:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        load, compose = ({name: _curve(p) for name, p in stored[part].items()} for part in ("load", "compose"))
        return cls(_curve(stored["read"]), load, compose, dict(stored["made"]))


def _curve(points: Any) -> Curve:
    found = tuple((int(tokens), float(seconds)) for tokens, seconds in points)
    if not found:
        raise ValueError("a curve without points")
    return Curve(found)


def costs_path(model: LoadedModel, folder: Path | None = None) -> Path:
    """Where the costs of this model on this machine are kept; the user's cache folder by default."""
    folder = folder or Path(platformdirs.user_cache_dir("nnm")) / "costs"
    machine = (torch.__version__, transformers.__version__, platform.node(), platform.machine(), str(model.device))
    return folder / f"{digest(model.fingerprint, *machine, str(torch.get_num_threads()))}.json"


def switched_off() -> bool:
    """Whether the environment says that costs of earlier runs are not to be used."""
    return os.environ.get(SWITCH, "").strip().lower() in ("off", "0", "no", "false")


def load_costs(model: LoadedModel, folder: Path | None = None) -> Costs | None:
    """The costs that were measured before, or None."""
    if switched_off():
        return None
    path = costs_path(model, folder)
    try:
        costs = Costs.from_json(json.loads(path.read_text()))
        return replace(costs, made={**costs.made, "file": str(path)})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # never measured, or by another release: nothing is known


def keep_costs(model: LoadedModel, costs: Costs, folder: Path | None = None) -> Costs:
    """Store the costs and say where; a cache folder that cannot be written is only logged."""
    if switched_off():
        return costs
    path = costs_path(model, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(costs.to_json()))
    except OSError as error:
        logger.info("the measured costs could not be kept: %s", error)
        return costs
    return replace(costs, made={**costs.made, "file": str(path)})


def measure_costs(
    model: LoadedModel,
    *,
    lengths: Sequence[int] = LENGTHS,
    codecs: Sequence[str] = tuple(CODECS),
    composers: Sequence[str] | None = None,
    folder: Path | None = None,
    repeats: int = _REPEATS,
    progress: Callable[[str], None] = lambda text: None,
) -> Costs:
    """Measure; some seconds on a small model.

    Args:
        lengths: tokens of the memories; those that do not fit the context, or take too long, are left out.
        codecs: which to measure; those that cannot keep this model's states are left out.
        composers: which to measure; all by default.
        folder: on the disk that is to be measured; the system's temporary folder by default.
        progress: told what is measured next.

    Raises:
        InvalidInputError: no length fits the model's context.
    """
    kept = [n for n in sorted(lengths) if n + QUESTION + 1 <= model.context_limit]
    if not kept:
        raise InvalidInputError(f"No memory of {lengths} tokens fits a context of {model.context_limit}.")
    chosen = [composer(name) for name in (names() if composers is None else composers)]
    found: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="nnm-costs-", dir=folder) as place_of:
        for length in kept:
            progress(f"{length} tokens")
            bench = _Bench(model, length, Path(place_of) / str(length))
            for name, seconds in bench.measure([*_fitting(model, codecs)], chosen, repeats).items():
                found.setdefault(name, []).append((length, seconds))
            if found["read"][-1][1] > _PATIENCE:
                break
    curves = {name: Curve(tuple(points)) for name, points in found.items()}
    return Costs(
        curves["read"],
        {name.removeprefix("load "): curve for name, curve in curves.items() if name.startswith("load ")},
        {name.removeprefix("compose "): curve for name, curve in curves.items() if name.startswith("compose ")},
        {"model": model.name, "device": str(model.device), "threads": str(torch.get_num_threads()),
         "date": time.strftime("%Y-%m-%d", time.gmtime())},
    )  # fmt: skip


def _fitting(model: LoadedModel, names: Sequence[str]) -> list[Codec]:
    found = []
    for name in names:
        codec = make_codec(name)
        try:
            codec.check(model)
        except InvalidInputError as error:
            logger.debug("%s is not measured: %s", name, error)
            continue
        found.append(codec)
    return found


class _Bench:
    """One memory of random tokens, its states in two stores, and prompts made of them."""

    def __init__(self, model: LoadedModel, length: int, folder: Path) -> None:
        self.model = model
        self.folder = folder
        size = embedding_weight(model.hf).shape[0]
        ids = [(index * 7919 + 13) % size for index in range(length + QUESTION)]
        memories = [Memory(str(index), "", {}, "costs") for index in range(2)]
        self.memory = Segment(tuple(ids[:length]), memories[0])
        self.halves = [
            Segment(tuple(ids[: length // 2]), memories[0]),
            Segment(tuple(ids[length // 2 : length]), memories[1]),
        ]
        self.question = Segment(tuple(ids[length:]), None)
        self.stores: dict[str, BlobStore] = {"ram": open_blobs(None), "disk": open_blobs(folder)}
        self.reader = Reader(model, lambda: EMPTY)

    def measure(self, codecs: Sequence[Codec], composers: Sequence[Composer], repeats: int) -> dict[str, float]:
        """Median seconds by arm, all arms in turns."""
        arms: dict[str, Callable[[], object]] = {
            "read": lambda: prefill(self.model, read_plan([self.memory, self.question]), room=1)
        }
        for codec in codecs:
            state = capture(self.model, [self.memory.ids], residual_layer=codec.residual_layer)[0]
            for where, store in self.stores.items():
                store.put(codec.name, codec.encode(state), manifest_of(state, codec, self.model.fingerprint))
                arms[f"load {codec.name} {where}"] = lambda codec=codec, where=where: self._load(codec, where)  # type: ignore[misc]  # bound now
        if self.model.positions.family != "fixed" and len(self.halves[0].ids):
            states = {s.memory.id: capture(self.model, [s.ids])[0] for s in self.halves if s.memory is not None}
            for chosen in composers:
                if not chosen.refusal(self.model):
                    arms[f"compose {chosen.name}"] = lambda chosen=chosen: self._compose(chosen, states)  # type: ignore[misc]  # bound now
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(repeats + 1):  # the first one warms up
            for name, work in arms.items():
                took = self._timed(work, cold=name.endswith(" disk"))
                if turn:
                    seconds[name].append(took)
        return {name: statistics.median(values) for name, values in seconds.items()}

    def _timed(self, work: Callable[[], object], *, cold: bool) -> float:
        if cold:
            for path in self.folder.rglob("*.safetensors"):
                evict(path)
        started = time.perf_counter()
        work()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter() - started

    def _load(self, codec: Codec, where: str) -> None:
        def find(segment: Segment, left: str, start: int) -> PlacedState | None:
            blob = self.stores[where].get(codec.name)
            state = None if blob is None else codec.decode(blob.tensors, blob.manifest, self.reader)
            return None if state is None else place(self.model, state, start)

        plan = make_plan([self.memory, self.question], "exact", find, lambda *_: None)
        prefill(self.model, plan, room=1)

    def _compose(self, chosen: Composer, states: Mapping[str, State]) -> None:
        def stored(segment: Segment) -> State | None:
            return None if segment.memory is None else states[segment.memory.id]

        def moved(segment: Segment, start: int) -> PlacedState | None:
            state = stored(segment)
            return None if state is None else place(self.model, state, start)

        plan: Plan = make_plan(
            [*self.halves, self.question], "fast", lambda s, _, at: None if at else moved(s, at), moved
        )
        chosen.prefill(Composition(self.model, plan, 1, stored))


def evict(path: Path) -> None:
    """Throw a file out of the page cache where the system lets us."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
