"""Reading a few tokens without waiting for Python: the model's pass captured once as a CUDA graph, then replayed.

Behind an injected state only the question is read, some 64 tokens. On a GPU the model's weights pass by in a few
milliseconds, but launching their kernels one by one from Python takes ten times as long. A graph needs fixed shapes and
addresses: the cache lies in one buffer that is lent to one answer at a time, new tokens are padded to a few widths, and
attention reaches over a fixed number of places, of which a mask shows only the filled ones. A question is captured in
pieces of a few layers: between them the states of the next layers are brought, so that the first layers compute before
the last states have come. Whatever does not fit (a second answer at the same time, an intervention, sliding windows)
takes the ordinary way, with the same result.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from nnm_core.injection.norms import fused_norms
from nnm_core.injection.prefix_attention import SHORTEST_PREFIX, PrefixAttention, has_flash
from nnm_core.injection.split_attention import SplitAttention, visible
from nnm_core.model.attention import AttentionIntervention, intervene, intervened
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import embedding_weight
from nnm_core.states.cache import PlacedCache

logger = logging.getLogger(__name__)

# Widths of a pass; fewer tokens are padded, more are read in the ordinary way.
WIDTHS = (1, 64, 256)
_SMALLEST = 512
# Layers of a piece of a captured pass.
_PIECE = 2
_MOST_GRAPHS = 32
# The lent buffer may take this share of the GPU's memory.
_SHARE = 0.25
_CHECKED = 24
# Largest |delta logit| between a fixed pass and an ordinary one, as in the self-test.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 4e-1}


def new_cache(model: LoadedModel, capacity: int) -> PlacedCache:
    """A cache for one answer: in lent buffers with a fast way to read on a GPU, else one of its own."""
    if model.device.type == "cuda":
        lent = static_forward(model).lend(capacity)
        if lent is not None:
            return lent
    return PlacedCache(model.layers, capacity=capacity)


def static_forward(model: LoadedModel) -> StaticForward:
    """The one `StaticForward` of this model."""
    if "static" not in model.workspace:
        model.workspace["static"] = StaticForward(model)
    found: StaticForward = model.workspace["static"]
    return found


@dataclass(frozen=True)
class _Step:
    """A captured pass.

    Attributes:
        inputs: what is written before it runs.
        pieces: how many layers must have their states, and what is then run; in order.
        logits: gives them when all have run.
    """

    inputs: Tensor
    pieces: Sequence[tuple[int, Callable[[], None]]]
    logits: Callable[[], Tensor]


class StaticForward:
    """Fixed-shape passes of one model over one lent buffer. Implements `FixedForward`.

    Attributes:
        refusal: why this model or machine takes the ordinary way; empty when it does not.
        captures: graphs captured so far.
        replays: passes run by them.
    """

    def __init__(self, model: LoadedModel, *, graphs: bool | None = None) -> None:
        """Args: graphs: capture CUDA graphs; False runs the same passes eagerly (for tests, on any device)."""
        self._model = weakref.ref(model)
        self._graphs = model.device.type == "cuda" if graphs is None else graphs
        self._lock = threading.Lock()
        self._lent = False
        self._block: Tensor | None = None
        # For the next answer: making one takes as long as some layers.
        self._spare: PlacedCache | None = None
        self._steps: OrderedDict[tuple[int, int], _Step] = OrderedDict()
        self._pool: Any = None
        self.captures = 0
        self.replays = 0
        self.refusal = unfit(model) or self._check(model)
        if self.refusal:
            logger.info("%s: questions are read without CUDA graphs: %s", model.name, self.refusal)

    def lend(self, capacity: int) -> PlacedCache | None:
        """A cache with room for `capacity` tokens and for padding, or None: refused, in use, or too large."""
        with self._lock:
            if self.refusal or self._lent or not self._make_room(bucket(capacity + WIDTHS[-1])):
                return None
            self._lent = True
        lent = self._spare or self._cache()
        self._spare, lent.forward = None, self
        weakref.finalize(lent, self._take_back)
        return lent

    @torch.inference_mode()
    def run(self, cache: PlacedCache, token_ids: Sequence[int]) -> Tensor | None:
        """See `FixedForward`."""
        start, count = cache.length, len(token_ids)
        width = next((width for width in WIDTHS if width >= count), None)
        if width is None or self.refusal or cache.block is None or cache.skipped or intervened():
            return None
        reach = bucket(start + width)
        if reach > cache.block.shape[-2]:
            return None
        inputs = _inputs(token_ids, start, width)
        step = self._steps.get((width, reach))
        if step is None:
            step = self._capture(cache, inputs, reach)
            if step is None:
                return None
        self._steps.move_to_end((width, reach))
        step.inputs.copy_(inputs.pin_memory() if self._graphs else inputs, non_blocking=True)
        for layers, run in step.pieces:
            cache.arrive(layers)
            run()
        self.replays += 1
        cache.advance(start + count)
        self._spare = self._spare or self._cache()  # while the GPU works
        return step.logits().clone()

    def _cache(self) -> PlacedCache:
        assert self._block is not None  # set by _make_room
        return PlacedCache(len(self._block), block=self._block)

    def _take_back(self) -> None:
        self._lent = False

    def _make_room(self, places: int) -> bool:
        """Have a buffer of so many places; a new one makes the captured passes useless."""
        if self._block is not None and self._block.shape[-2] >= places:
            return True
        model = self._model()
        assert model is not None  # who lends holds the model
        with torch.inference_mode():
            probe = PlacedCache(model.layers)
            model.hf.base_model(input_ids=_some_ids(model, 1), past_key_values=probe, use_cache=True)
            like = probe.placed[0].view()[0]
            _, heads, _, dim = like.shape
            need = model.layers * 2 * heads * places * dim * like.element_size()
            if like.is_cuda and need > _SHARE * torch.cuda.get_device_properties(like.device).total_memory:
                return False
            self._steps.clear()
            self._spare = None
            self._pool = None  # graphs' memory is gone with the last of them
            self._block = None
            with torch.inference_mode(False):  # so that the buffers can also be written outside of it
                shape = (model.layers, 2, heads, places, dim)
                self._block = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return True

    def _check(self, model: LoadedModel) -> str:
        """The proof on the model at hand: a fixed pass gives the logits of an ordinary one."""
        try:
            with torch.inference_mode():
                ids = _some_ids(model, _CHECKED)
                read = model.hf(input_ids=ids, past_key_values=PlacedCache(model.layers), use_cache=True).logits[0, -1]
                if not self._make_room(bucket(_CHECKED + WIDTHS[-1])):
                    return "its buffers would take too much memory"
                assert self._block is not None  # set by _make_room
                cache = PlacedCache(model.layers, block=self._block)
                half = _CHECKED // 2
                model.hf(input_ids=ids[:, :half], past_key_values=cache, use_cache=True)
                inputs = _inputs(ids[0, half:].tolist(), half, WIDTHS[1]).to(model.device)
                found = _pass(model, cache, inputs, bucket(half + WIDTHS[1]))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            return f"a pass of fixed shape fails: {_first_line(error)}"
        off = float((read.float() - found.float()).abs().max())
        return "" if off <= _TOLERANCE.get(model.dtype, 4e-1) else f"a pass of fixed shape differs by {off:.1e}"

    def _capture(self, cache: PlacedCache, inputs: Tensor, reach: int) -> _Step | None:
        model = self._model()
        assert model is not None  # who answers holds the model
        cache.arrive()
        static = inputs.to(model.device)
        try:
            step = self._record(model, cache, static, reach) if self._graphs else _eager(model, cache, static, reach)
        except RuntimeError as error:
            self.refusal = f"the pass could not be captured: {_first_line(error)}"
            logger.warning("%s: questions are read without CUDA graphs from now on: %s", model.name, self.refusal)
            return None
        self.captures += self._graphs
        self._steps[len(inputs) // 2, reach] = step
        if len(self._steps) > _MOST_GRAPHS:
            self._steps.popitem(last=False)
        return step

    def _record(self, model: LoadedModel, cache: PlacedCache, static: Tensor, reach: int) -> _Step:
        """Run the pass twice (libraries set themselves up), then capture it. Running it again changes nothing."""
        side = torch.cuda.Stream(model.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                _pass(model, cache, static, reach)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize(model.device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        pieces = _Pieces(self._pool)
        # A single token is read behind states that are there.
        firsts = [*range(_PIECE, model.layers - 1, _PIECE), model.layers - 1] if len(static) > 3 else []
        with torch.cuda.stream(side), pieces, _before(cache, firsts, pieces.cut):
            logits = _pass(model, cache, static, reach)
        ends = [*firsts, model.layers]
        runs = [graph.replay for graph in pieces.graphs]
        return _Step(static, list(zip(ends, runs, strict=True)), lambda: logits)


class _Pieces:
    """A capture that can be cut: what follows goes into another graph, with the same memory."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def __enter__(self) -> None:
        self.graphs.append(torch.cuda.CUDAGraph())
        self.graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def __exit__(self, *_: object) -> None:
        self.graphs[-1].capture_end()

    def cut(self) -> None:
        """End one graph and begin the next."""
        self.__exit__()
        self.__enter__()


def _eager(model: LoadedModel, cache: PlacedCache, static: Tensor, reach: int) -> _Step:
    """The same pass without a capture, for tests."""
    # The buffers are those of every lent cache; the eager pass needs one that shows them.
    twin = PlacedCache(model.layers, block=cache.block)
    found: list[Tensor] = []

    def run() -> None:
        found[:] = [_pass(model, twin, static, reach)]

    return _Step(static, [(model.layers, run)], lambda: found[0])


def unfit(model: LoadedModel) -> str:
    """Why the passes of this model cannot have a fixed shape; empty if they can."""
    config = model.hf.config.get_text_config(decoder=True)
    if model.positions.family != "rotary":
        return "its positions are not rotary"
    if model.positions.length_limit is not None:
        return "its rotary tables change with the length of the prompt"
    if not model.intervenes or not str(config._attn_implementation).endswith("sdpa"):
        return f"its attention implementation is {config._attn_implementation}"
    if any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers):
        return "it has sliding-window layers"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "not all its layers attend to everything"
    return ""


def bucket(places: int) -> int:
    """`places` rounded up in steps of half an octave, above 4,096 of a quarter: few graphs, little idle attention."""
    octave = _SMALLEST
    while 2 * octave < places:
        octave *= 2
    step = octave // (4 if octave >= 4096 else 2)
    return max(_SMALLEST, -(-places // step) * step)


def _inputs(token_ids: Sequence[int], start: int, width: int) -> Tensor:
    """Everything that changes from pass to pass in one tensor: ids and positions [width] each, index of the last."""
    padding = [token_ids[-1]] * (width - len(token_ids))
    return torch.tensor([*token_ids, *padding, *range(start, start + width), len(token_ids) - 1])


def _pass(model: LoadedModel, cache: PlacedCache, inputs: Tensor, reach: int) -> Tensor:
    """Logits [vocabulary] of one pass; padding stands behind the tokens, where the next pass overwrites it."""
    width = len(inputs) // 2
    ids, positions, last = inputs[None, :width], inputs[width:-1], inputs[-1:]
    mask = visible(positions, reach, model.dtype)
    keep = {"logits_to_keep": last} if keeps_logits(model.hf) else {}
    with _fixed(cache, positions, reach), fused_norms(model.hf), intervene(_attention(cache, positions, mask)):
        logits = model.hf(
            input_ids=ids,
            position_ids=positions[None],
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=True,
            **keep,
        ).logits[0]
    found: Tensor = logits[0] if keep else logits.index_select(0, last)[0]
    return found


def _attention(cache: PlacedCache, positions: Tensor, mask: Tensor) -> AttentionIntervention:
    """The quickest attention of so many queries over so many places."""
    width, reach = mask.shape
    like = cache.placed[0].keys
    # A bucket begins where the one before ends, so the prefix has more than half as many places as the keys.
    if (
        width > 1
        and reach > SHORTEST_PREFIX
        and like is not None
        and has_flash(like.device, like.dtype, like.shape[-1])
    ):
        return PrefixAttention(positions, reach)
    return SplitAttention(mask)


@contextmanager
def _before(cache: PlacedCache, layers: Iterable[int], call: Callable[[], None]) -> Iterator[None]:
    """Inside the block `call` is called before these layers look at their states."""
    chosen = [cache.placed[index] for index in layers]
    for layer in chosen:
        layer.before = call
    try:
        yield
    finally:
        for layer in chosen:
            layer.before = None


@contextmanager
def _fixed(cache: PlacedCache, positions: Tensor, reach: int) -> Iterator[None]:
    for layer in cache.placed:
        layer.fixed = (positions, reach)
    try:
        yield
    finally:
        for layer in cache.placed:
            layer.fixed = None


def _some_ids(model: LoadedModel, count: int) -> Tensor:
    size = embedding_weight(model.hf).shape[0]
    return ((torch.arange(count) * 7919 + 13) % size)[None].to(model.device)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the model can be asked for some positions' logits only."""
    return "logits_to_keep" in _parameters(type(model).forward)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
