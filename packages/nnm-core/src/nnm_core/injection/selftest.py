"""The proof, on the model at hand, that what is injected equals what is read; run once per fingerprint."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import torch
import transformers
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nnm_core.errors import PositionError
from nnm_core.injection.prefill import forward, load
from nnm_core.model.fingerprint import digest
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import embedding_weight
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import NativeCodec, manifest_of
from nnm_core.states.state import PlacedState

logger = logging.getLogger(__name__)

_LEFT, _MEMORY, _QUESTION = 12, 40, 9
# Largest difference of a logit that still counts as the same computation in another order.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 4e-1}


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found.

    Attributes:
        injected: largest |delta logit| between injected and read.
        reloaded: the same, after the state went through its file format.
        moved: largest |delta key or value| between a state moved to another place and one computed there; None
            when the model's positions cannot move.
        same_token: whether injected and read predict the same next token.
        tolerance: the bound on the three, for the model's compute type.
    """

    injected: float
    reloaded: float
    moved: float | None
    same_token: bool
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether states may be injected at all."""
        near = all(found <= self.tolerance for found in (self.injected, self.reloaded, self.moved or 0.0))  # not NaN
        return near and (self.same_token or self.tolerance > TOLERANCE[torch.float32])

    @property
    def refusal(self) -> str:
        """Why not, in a sentence; empty if passed."""
        return "" if self.passed else f"the model failed the self-test ({self}), so everything is read as text"


def self_test(model: LoadedModel, *, folder: Path | None = None) -> SelfTest:
    """The cached outcome for this fingerprint, device and library versions, or a new one.

    Args:
        folder: where outcomes are kept; the user's cache folder by default.
    """
    folder = folder or Path(platformdirs.user_cache_dir("nnm")) / "selftest"
    versions = (torch.__version__, transformers.__version__, platform.machine(), str(model.device))
    path = folder / f"{digest(model.fingerprint, *versions)}.json"
    try:
        return SelfTest(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass  # not there, or of another format: test again
    result = run_self_test(model)
    if not result.passed:
        logger.warning("%s: %s", model.name, result.refusal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(result)))
    except OSError as error:
        logger.info("the self-test's outcome could not be kept: %s", error)
    return result


@torch.inference_mode()
def run_self_test(model: LoadedModel) -> SelfTest:
    """Compare injected, reloaded and moved states with reading; a second or so on a small model."""
    left, memory, question = _rows(model)
    root = place(model, capture(model, [left])[0], 0)
    state = capture(model, [memory], root)[0]
    codec = NativeCodec()
    stored = codec.decode(load_tensors(save_tensors(codec.encode(state))), manifest_of(state, codec, "self-test"))
    read = forward(model, PlacedCache(model.layers), [*left, *memory, *question])
    injected, reloaded = (_injected(model, root, place(model, s, root.length), question) for s in (state, stored))
    return SelfTest(
        injected=_distance(read, injected),
        reloaded=_distance(read, reloaded),
        moved=_moved(model, memory),
        same_token=bool(read.argmax() == injected.argmax()),
        tolerance=TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16]),
    )


def _rows(model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
    size = embedding_weight(model.hf).shape[0]
    ids = [(index * 7919 + 13) % size for index in range(_LEFT + _MEMORY + _QUESTION)]
    return ids[:_LEFT], ids[_LEFT : _LEFT + _MEMORY], ids[_LEFT + _MEMORY :]


def _injected(model: LoadedModel, root: PlacedState, memory: PlacedState, question: list[int]) -> Tensor:
    cache = PlacedCache(model.layers)
    load(cache, root)
    load(cache, memory)
    return forward(model, cache, question)


def _moved(model: LoadedModel, memory: list[int]) -> float | None:
    """Move a state without left context, and compute it there directly by shifting the positions."""
    state = capture(model, [memory])[0]
    try:
        moved = place(model, state, _LEFT)
    except PositionError:
        return None
    if model.positions.family != "rotary":
        return 0.0  # keys without positions are the same wherever they stand; `measure_positions` has shown it
    there = PlacedCache(model.layers)
    positions = torch.arange(_LEFT, _LEFT + len(memory), device=model.device)[None]
    ids = torch.tensor([memory], device=model.device)
    model.hf.base_model(input_ids=ids, position_ids=positions, past_key_values=there, use_cache=True)
    return max(
        max(_distance(layer.view()[0][0], key), _distance(layer.view()[1][0], value))
        for layer, (key, value) in zip(there.placed, moved.layers, strict=True)
    )


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
