"""States that are not placed yet, brought into a cache on an accelerator while it already computes.

A state is copied group by group of layers on a stream of its own, in the form in which it is stored; on another stream
it is unpacked, rotated and written into the cache. A group is brought when the first of its layers is to be computed,
so that the first layers attend to the state while the last ones are still on the bus, or still in a file. States that
are not in pinned memory (mapped files) are copied there first, by all cores, a group ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, islice
from typing import TypeVar

import torch
from torch import Tensor

from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import Turn
from nnm_core.states.cache import PlacedCache
from nnm_core.states.packed import Packed, PackedState
from nnm_core.states.state import LayerStates, PlacedState, State, one_block
from nnm_core.storage.mapped import read_into

# The question begins when the first group has come, and at the end the last layers wait for the last one: small groups
# are good for both; but each costs some tenths of a millisecond of Python.
_FIRST_LAYERS = 2
_STAGED_BYTES = 32 * 2**20
_PINNED_BYTES = (16 * 2**20, 64 * 2**20)
_PINNED_GROUPS = 10
_ALIGN = 64
T = TypeVar("T")


class HostState(PlacedState):
    """A `PlacedState` whose tensors are not yet rotated, and usually still on the host; `copy_into` brings them.

    Attributes:
        state: keys before rotation and values, all layers of one shape.
        start: position of the first token in the prompt.
    """

    def __init__(self, model: LoadedModel, state: State, start: int) -> None:
        # The base is frozen, and its `layers` are computed here only if somebody asks for them.
        object.__setattr__(self, "length", len(state.token_ids))
        object.__setattr__(self, "origin", state.origin)
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "_model", model)

    state: State
    start: int
    _model: LoadedModel

    @cached_property
    def name(self) -> str:
        """`chain` of the context that ends with these tokens; hashing them is left until somebody asks."""
        return self.state.chain

    @cached_property
    def layers(self) -> tuple[LayerStates, ...]:
        """For each layer rotated keys and values on the model's device, [kv_heads, tokens, head_dim]."""
        device = self._model.device
        pairs = [(key.to(device), value.to(device)) for key, value in self.state.layers]
        keys = self._model.positions.place([key for key, _ in pairs], self.start)
        return tuple(zip(keys, (value for _, value in pairs), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.state.nbytes

    def copy_into(self, cache: PlacedCache) -> None:
        """Bring the state behind what `cache` holds. On an accelerator this only enqueues the work.

        Keys are rotated to `start`, wherever in the buffers they come to lie: memories may share their positions.
        """
        at, tokens = cache.length, self.length
        if "layers" in self.__dict__:  # somebody has asked for them
            super().copy_into(cache)
            return
        source, turn = packed_of(self.state), Turn(self._model.positions, self.start, tokens)
        staging, room = staging_of(self._model), cache.room(0, source.layers, at, tokens)
        if room is not None:
            cache.advance(at + tokens)
            cache.expect(staging.bring(source, tokens, partial(_put, room, turn)))
            return

        def append(first: int, keys: Tensor, values: Tensor) -> None:
            cache.append(first, turn(first, keys), values)

        for _ in staging.bring(source, tokens, append):  # at once: buffers of single layers are made as states come
            pass
        cache.advance(at + tokens)


def _put(room: Tensor, turn: Turn, first: int, keys: Tensor, values: Tensor) -> None:
    """Write some layers' states where they belong in `room`, [layers, 2, kv_heads, tokens, head_dim], keys turned."""
    part = room[first : first + len(keys)]
    turn.into(first, keys, part[:, 0])
    part[:, 1].copy_(values)


@dataclass(frozen=True)
class Plain:
    """Keys and values as they are, of one shape. Implements `Packed`."""

    state: State

    @property
    def layers(self) -> int:
        """See `Packed`."""
        return len(self.state.layers)

    @property
    def nbytes(self) -> int:
        """See `Packed`."""
        key = self.state.layers[0][0]
        return 2 * len(self.state.layers) * key.numel() * key.element_size()

    @cached_property
    def _block(self) -> Tensor | None:
        return one_block(self.state.layers)

    def part(self, first: int, last: int) -> Sequence[Tensor]:
        """See `Packed`."""
        if self._block is not None:
            return [self._block[first:last]]
        return [torch.stack([torch.stack(pair) for pair in self.state.layers[first:last]])]

    def unpack(self, part: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
        """See `Packed`."""
        return part[0][:, 0, :, :tokens], part[0][:, 1, :, :tokens]


def packed_of(state: State) -> Packed:
    """The form in which a state is to be brought."""
    return state.packed if isinstance(state, PackedState) else Plain(state)


def uniform(state: State) -> bool:
    """Whether all keys and values of a state have one shape, so that layers can be brought in groups."""
    return isinstance(state, PackedState) or len({tensor.shape for pair in state.layers for tensor in pair}) == 1


def staging_of(model: LoadedModel) -> Staging:
    """The one `Staging` of this model."""
    if "staging" not in model.workspace:
        model.workspace["staging"] = Staging(model.device)
    found: Staging = model.workspace["staging"]
    return found


class Staging:
    """A stream for copies, one for rotating what has come, and a thread that reads ahead. For any number of threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.places = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(1, "nnm-ahead")

    def bring(self, source: Packed, tokens: int, put: Callable[[int, Tensor, Tensor], None]) -> Iterator[int]:
        """Bring a state group by group of layers, one at each step; gives how many layers have come.

        The current stream then waits for the group. Copies go over a stream of their own, so that the bus need not
        wait for what is done with the groups before.

        Args:
            tokens: how many are wanted, from the first one on.
            put: writes where they belong: the index of the first layer, and keys and values [layers, kv_heads, tokens,
                head_dim].
        """
        for first, part, arrived in self._sent(source):
            with self._placing(part, arrived):
                keys, values = source.unpack(part, tokens)
                put(first, keys, values)
            yield first + len(keys)

    @contextmanager
    def _placing(self, part: Sequence[Tensor], arrived: torch.cuda.Event | None) -> Iterator[None]:
        """Inside the block work goes to a stream of its own, behind the copy of `part`; then the current one waits."""
        if self.places is None:
            yield
            return
        if arrived is not None:
            self.places.wait_event(arrived)
        for tensor in part:
            tensor.record_stream(self.places)
        with torch.cuda.stream(self.places):
            yield
        torch.cuda.current_stream().wait_stream(self.places)

    def _sent(self, source: Packed) -> Iterator[tuple[int, Sequence[Tensor], torch.cuda.Event | None]]:
        """Groups of layers on the device: index of the first, what they are made of, what tells that they arrived."""
        one = source.part(0, 1)[0]
        pinned, there = one.is_pinned(), one.device == self._device
        for stream in (self.stream, self.places):
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream())  # what used the buffers before must be done with them
        groups = [(0, source.layers)] if there else _groups(source, pinned=pinned)
        if pinned or there or self.stream is None:
            parts = (source.part(*group) for group in groups)
        else:
            reading = _ahead(self._reader.submit(_pinned, source, *group) for group in groups)
            parts = (read.result() for read in reading)
        # What lies in pinned memory is sent ahead, so that the bus does not wait for Python.
        sent = map(self._send, parts)
        for (first, _), (part, arrived) in zip(groups, _ahead(sent) if pinned else sent, strict=True):
            yield first, part, arrived

    def _send(self, part: Sequence[Tensor]) -> tuple[Sequence[Tensor], torch.cuda.Event | None]:
        """A group on the device, and what tells that it has arrived; None where nothing has to be waited for."""
        if self.stream is None or part[0].device == self._device:
            return [tensor.to(self._device) for tensor in part], None
        with torch.cuda.stream(self.stream):
            return [tensor.to(self._device, non_blocking=True) for tensor in part], self.stream.record_event()


def _ahead(items: Iterator[T], count: int = 2) -> Iterator[T]:
    """The items, each when `count` more have been begun."""
    begun = deque(islice(items, count))
    for item in items:
        begun.append(item)
        yield begun.popleft()
    yield from begun


def _groups(source: Packed, *, pinned: bool) -> list[tuple[int, int]]:
    """The runs of layers that are brought together: first and last + 1 of each. The first is short: all wait for it."""
    size = max(1, _group_bytes(source.nbytes, pinned=pinned) * source.layers // max(source.nbytes, 1))
    firsts = [0, *range(min(size, _FIRST_LAYERS), source.layers, size)]
    return list(zip(firsts, [*firsts[1:], source.layers], strict=True))


def _pinned(source: Packed, first: int, last: int) -> Sequence[Tensor]:
    """A group in pinned memory, all of it in one storage; torch keeps such memory, once used, for the next one."""
    part = source.part(first, last)
    ends = list(accumulate(-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in part))
    views = _views(torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True), part, ends)
    for tensor, view in zip(part, views, strict=True):
        _fill(view, tensor)
    return views


def _group_bytes(nbytes: int, *, pinned: bool) -> int:
    """How much of a state of `nbytes` to copy at a time."""
    least, most = _PINNED_BYTES
    return min(max(nbytes // _PINNED_GROUPS, least), most) if pinned else _STAGED_BYTES


def _fill(view: Tensor, tensor: Tensor) -> None:
    """Copy into a contiguous view on the host, from the file itself where `tensor` is a mapped one."""
    if not read_into(tensor, view):
        view.copy_(tensor)  # by as many threads as torch uses


def _views(storage: Tensor, part: Sequence[Tensor], ends: Sequence[int]) -> list[Tensor]:
    """Tensors like those of `part`, one behind the other in `storage`, bytes."""
    return [
        storage[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip([0, *ends], part, strict=False)
    ]
