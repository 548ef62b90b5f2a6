"""What the programs in ``benchmarks/`` share: fair timing, texts of a given length, and a record of the machine."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.report import quiet_libraries

if TYPE_CHECKING:
    from nnm_core.engine import NNM
    from nnm_core.model.load import LoadedModel

VERSIONS = ("nnm-core", "nnm-mini", "torch", "transformers", "qdrant-edge-py")
_WRITTEN = ("--json", "--plot", "--items", "--save-runs", "--save-evidence")


def parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    quiet_libraries()
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", default="nnm-mini", help="Hugging Face name, local folder, or nnm-mini")
    options.add_argument("--device", default=None, help="cpu, cuda, mps; chosen for you if left out")
    options.add_argument("--repeats", type=int, default=repeats, help="measurements of each figure")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    options.add_argument("--plot", type=Path, metavar="FILE", help="write a plot (PNG)")
    return options


def environment(model: LoadedModel) -> dict[str, Any]:
    """With what a result was made: model, machine, versions, date."""
    import torch

    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}{_accelerator(model)}",
        "python": platform.python_version(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(sys.argv),
    }


def command(words: Sequence[str]) -> str:
    """The command line as one that another can repeat: without the files that it writes.

    A program is run by python; ``nnm`` is a command of its own, wherever it lies.
    """
    kept, leave_out = (["nnm"] if Path(words[0]).stem == "nnm" else ["python", words[0]]), 0
    for word in words[1:]:
        leave_out = 2 if word in _WRITTEN else max(0, leave_out - 1)
        if not leave_out:
            kept.append(word)
    return shlex.join(kept)


def _accelerator(model: LoadedModel) -> str:
    import torch

    return f", {torch.cuda.get_device_name(model.device)}" if model.device.type == "cuda" else ""


def versions() -> dict[str, str]:
    """The packages that a result depends on."""
    return {name: found for name in VERSIONS if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def inject_always(engine: NNM) -> None:
    """Let `engine` inject also what this machine, where that was measured, would rather read to save time.

    A measurement of states must not depend on whether somebody has calibrated the machine before.
    """
    engine.planner = replace(engine.planner, costs=None)


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `work` takes by `clock`: `time.process_time` counts this process's own work on a busy machine."""
    started = clock()
    work()
    return clock() - started


def side_by_side(arms: Mapping[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Measure all arms in turns, so that whatever else the machine does slows all of them alike.

    Args:
        arms: name -> function from the number of the repeat to seconds.
        repeats: turns; every other one goes backwards through the arms.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):
        for name in list(arms) if repeat % 2 == 0 else reversed(list(arms)):
            seconds[name].append(arms[name](repeat))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def texts_of_length(model: LoadedModel, tokens: int, count: int) -> list[str]:
    """`count` different texts of `tokens` tokens each (give or take one), cut from the demo's passages.

    Raises:
        InvalidInputError: the passages are too short for that.
    """
    from nnm_core.demo.dataset import passages

    pieces = model.tokenizer([passage.text + "\n\n" for passage in passages()], add_special_tokens=False)["input_ids"]
    ids = [token for piece in pieces for token in piece]
    if tokens > len(ids):
        raise InvalidInputError(f"There are {len(ids)} tokens of text, not {tokens}.")
    step = max(1, (len(ids) - tokens) // max(count, 1))
    return [str(model.tokenizer.decode(ids[start : start + tokens])) for start in range(0, step * count, step)]
