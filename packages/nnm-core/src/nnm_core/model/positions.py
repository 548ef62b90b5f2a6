"""Where a state may be put: found by measuring the model, not by a list of names.

Keys are kept before rotation. Each family of rotary models hands the attention modules a pair ``(cos, sin)``; a
pre-hook can swap it for ``(1, 0)``, so that keys leave the module unrotated (after any QK norm), and the rotation
is done later by the model's own function with the model's own tables. That repeats the arithmetic of an ordinary
forward pass bit for bit, for partial, interleaved, scaled (YaRN, llama3, linear) and per-layer (local and global)
rotary embeddings alike, and layers without positions (NoPE) are recognised because their keys do not change.
`measure_positions` proves this on the model at hand; what it cannot prove, it does not use.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nnm_core.errors import PositionError, UnsupportedModelError
from nnm_core.model.attention import Attend, intervene

logger = logging.getLogger(__name__)

Family = Literal["rotary", "free", "fixed"]
Tables = tuple[Tensor, Tensor]
States = list[tuple[Tensor, Tensor]]
_PROBE = 6
_SHORTEST_TABLE = 1024
# Rotary tables of these kinds change with the length of the whole sequence.
_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class Rotary:
    """The rotation of one layer: its table module with fixed arguments, and the function that applies it.

    Attributes:
        width: the leading dimensions of a head that are rotated; the others pass through.
        halves: whether `apply` is ``x cos + (-x2, x1) sin`` over the halves x1, x2 of those dimensions, to the last
            bit; then `rotate_into` may be called where these are all.
    """

    module: nn.Module
    arguments: dict[str, Any]
    apply: Callable[..., tuple[Tensor, Tensor]]
    width: int
    halves: bool = False

    def tables(self, positions: Tensor, like: Tensor) -> Tables:
        """(cos, sin) for integer `positions` [batch, tokens]; each [batch, tokens, width], sometimes half of it."""
        cos, sin = self.module(like, position_ids=positions, **self.arguments)
        return cos, sin

    def rotate(self, states: Tensor, tables: Tables) -> Tensor:
        """Rotate queries or keys [batch, heads, tokens, head_dim]; dimensions past `width` pass through."""
        cos, sin = tables
        rotated = states[..., : self.width]
        turned = self.apply(rotated, rotated[:1, :1], cos, sin)[0]  # it always rotates two tensors
        return turned if self.width == states.shape[-1] else torch.cat([turned, states[..., self.width :]], dim=-1)

    def rotate_into(self, states: Tensor, tables: Tables, out: Tensor) -> None:
        """`rotate`, written where it belongs: fewer and shorter kernels than the model's function, which makes copies.

        Rounds after each step, as the model's function does.
        """
        cos, sin = tables
        (low, high), (sin_low, sin_high), (out_low, out_high) = (t.chunk(2, -1) for t in (states, sin, out))
        torch.mul(states, cos, out=out)
        out_low.sub_(high * sin_low)
        out_high.add_(low * sin_high)


@dataclass(frozen=True)
class Positions:
    """What was found out about a model's positions.

    Attributes:
        family: ``rotary``: keys are kept unrotated and can be rotated to any place; ``free``: keys hold no position
            (ALiBi, NoPE), any place; ``fixed``: only the place where they were computed.
        layers: number of layers with keys and values.
        rotary: for each layer its rotation, None where the layer has none.
        length_limit: with rotary tables that change with the sequence length, the length up to which they do not.
        note: why the family is not better, for the user to read; empty when nothing is to be said.
        known: rotary tables from position 0 on, by table, type and device; grown when a longer one is asked for.
    """

    family: Family
    layers: int
    rotary: tuple[Rotary | None, ...] = ()
    length_limit: int | None = None
    note: str = ""
    known: dict[Any, Tables] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def common(self) -> Rotary | None:
        """The rotation of every layer, where all have the same."""
        names = {None if rotary is None else _table_name(rotary) for rotary in self.rotary}
        return self.rotary[0] if len(names) == 1 else None

    def check_move(self, computed_at: int, placed_at: int, length: int) -> None:
        """Raise `PositionError` unless `length` tokens computed at one position may be placed at another."""
        if self.family == "fixed" and computed_at != placed_at:
            raise PositionError(
                f"This model's positions are part of its states: computed at {computed_at}, wanted at {placed_at}.",
                hint="Keep the left context as it was, or let the text be read (policy='exact').",
            )
        if self.length_limit is not None and placed_at + length > self.length_limit:
            raise PositionError(
                f"This model's rotary tables change beyond {self.length_limit} positions.",
                hint="Use fewer or shorter memories, or mode='read'.",
            )

    def place(self, keys: Sequence[Tensor], start: int, kept: Tensor | None = None) -> list[Tensor]:
        """Every layer's keys as they belong at positions ``start ...``; [kv_heads, tokens, head_dim] in and out.

        Args:
            kept: where some tokens were left out, the places of the others, counted from `start`.
        """
        turn = Turn(self, start, keys[0].shape[-2], kept)
        return [turn(index, key[None])[0] for index, key in enumerate(keys)]

    def tables(self, rotary: Rotary, start: int, length: int, like: Tensor) -> Tables:
        """(cos, sin) [1, length, width] of the positions ``start ...``, in the type and on the device of `like`."""
        end = start + length
        if self.length_limit is not None:  # a longer table would be another one
            return rotary.tables(torch.arange(start, end, device=like.device)[None], like)
        key = (_table_name(rotary), like.dtype, like.device)
        found = self.known.get(key)
        if found is None or found[0].shape[1] < end:
            size = max(_SHORTEST_TABLE, 1 << (end - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():  # it may be used outside of inference mode as well
                found = rotary.tables(torch.arange(size, device=like.device)[None], like)
            self.known[key] = found
        cos, sin = found
        return cos[:, start:end], sin[:, start:end]


@dataclass
class Turn:
    """Rotates unrotated keys to the positions ``start ...``, layer by layer or several layers at once."""

    positions: Positions
    start: int
    length: int
    kept: Tensor | None = None
    _tables: dict[tuple[int, str], Tables] = field(default_factory=dict)

    def __call__(self, first: int, keys: Tensor) -> Tensor:
        """The keys [layers, kv_heads, length, head_dim] of the layers ``first ...``, rotated."""
        if not self.positions.rotary:
            return keys
        layers = self.positions.rotary[first : first + len(keys)]
        if len({None if rotary is None else _table_name(rotary) for rotary in layers}) == 1:
            return self._turned(layers[0], keys)
        return torch.cat([self._turned(rotary, key[None]) for rotary, key in zip(layers, keys, strict=True)])

    def into(self, first: int, keys: Tensor, out: Tensor) -> None:
        """The same, written into `out`, of the same shape."""
        rotary = self.positions.common
        if rotary is not None and rotary.halves and rotary.width == keys.shape[-1]:
            tables = self._table(rotary, keys)
            if tables[0].dtype == keys.dtype == out.dtype:
                rotary.rotate_into(keys, tables, out)
                return
        out.copy_(self(first, keys))

    def _turned(self, rotary: Rotary | None, keys: Tensor) -> Tensor:
        return keys if rotary is None else rotary.rotate(keys, self._table(rotary, keys))

    def _table(self, rotary: Rotary, keys: Tensor) -> Tables:
        name = _table_name(rotary)
        if name not in self._tables:  # most models share one table between all layers
            if self.kept is None:
                self._tables[name] = self.positions.tables(rotary, self.start, self.length, keys)
            else:
                self._tables[name] = rotary.tables(self.start + self.kept.to(keys.device)[None], keys)
        return self._tables[name]


def _table_name(rotary: Rotary) -> tuple[int, str]:
    return id(rotary.module), str(rotary.arguments)


# --- deferred rotation -----------------------------------------------------------------------------------------


@dataclass
class DeferredRotation:
    """While active, attention modules see identity tables; queries are rotated here, keys by `rotate_keys`."""

    rotary: tuple[Rotary | None, ...]
    tables: dict[int, Tables] = field(default_factory=dict)

    def rotate_keys(self, layer: int, keys: Tensor) -> Tensor:
        """Rotate this pass's new keys of `layer`; called by the cache that receives them unrotated."""
        rotary = self.rotary[layer]
        return keys if rotary is None else rotary.rotate(keys, self.tables[layer])

    def __call__(
        self,
        attend: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """An `AttentionIntervention`: rotate the queries, then attend as usual."""
        return attend(module, self.rotate_keys(_layer_of(module), query), key, value, attention_mask, **kwargs)


_DEFERRED: ContextVar[DeferredRotation | None] = ContextVar("nnm_deferred_rotation", default=None)


@contextmanager
def deferred(rotary: tuple[Rotary | None, ...]) -> Iterator[DeferredRotation]:
    """Run forward passes whose keys reach the cache unrotated; the cache must rotate them with `rotate_keys`."""
    run = DeferredRotation(rotary)
    token = _DEFERRED.set(run)
    try:
        with intervene(run):
            yield run
    finally:
        _DEFERRED.reset(token)


def _defer_tables(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of every attention module; does nothing unless a deferred rotation is active."""
    run = _DEFERRED.get()
    if run is None or run.rotary[_layer_of(module)] is None:
        return None
    cos, sin = kwargs["position_embeddings"]
    run.tables[_layer_of(module)] = (cos, sin)
    return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


def remove_deferral(model: nn.Module) -> None:
    """Take away the hooks that `measure_positions` has left in `model`, and no others."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _defer_tables]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _layer_of(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module.__getattr__ is typed Tensor | Module


# --- measurement -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure_positions(model: PreTrainedModel, name: str) -> Positions:
    """Find the position family of `model` with a few forward passes over six tokens.

    Raises:
        UnsupportedModelError: the model does not run with an ordinary cache, returns no keys and values, or lets a
            later token change an earlier one's output (not a causal decoder).
    """
    remove_deferral(model)  # a model that is measured again must not have its tables swapped twice
    ids = _probe_ids(model)
    states = _probe(model, ids, name)
    _refuse_non_causal(model, ids, name)
    found = _find_rotary(model, ids)
    if found is None:
        return _family_without_tables(model, ids, states)
    rotary = _confirm_rotary(model, ids, states, found)
    if rotary is None:
        return Positions("fixed", len(states), note="its rotation could not be reproduced; states stay where they are")
    if not any(rotary):
        return _family_without_tables(model, ids, states)
    for attention in _attention_modules(model):
        attention.register_forward_pre_hook(_defer_tables, with_kwargs=True)
    return Positions("rotary", len(states), rotary, length_limit=_length_limit(model.config))


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The input embeddings, [vocabulary, width]; their device is where token ids belong."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor):
        raise UnsupportedModelError(f"{type(model).__name__} has no plain input embedding.")
    return weight


def _probe_ids(model: PreTrainedModel) -> Tensor:
    weight = embedding_weight(model)
    return ((torch.arange(_PROBE) * 7919 + 11) % weight.shape[0])[None].to(weight.device)


def _probe(model: PreTrainedModel, ids: Tensor, name: str) -> States:
    hint = "Use a decoder-only transformer."
    try:
        states = _states(model, ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(f"{name} does not run with an ordinary cache: {first_line}", hint=hint) from error
    if not states:
        raise UnsupportedModelError(f"{name} returns no keys and values.", hint=hint)
    return states


def _states(model: PreTrainedModel, ids: Tensor, **inputs: Tensor) -> States:
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
    return [
        (layer.keys, layer.values)
        for layer in cache.layers
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    ]


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-5 if a.dtype == torch.float32 else 2e-2
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def _all_close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(_close(x, y) for x, y in zip(a, b, strict=True))


def _refuse_non_causal(model: PreTrainedModel, ids: Tensor, name: str) -> None:
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    before, after = (model(input_ids=x).logits[0, : _PROBE - 1] for x in (ids, changed))
    if not _close(before, after):
        raise UnsupportedModelError(
            f"{name} is not causal: a later token changes earlier outputs.", hint="Use a decoder-only transformer."
        )


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """One attention module a layer, in order (cross-checked against the cache by the caller)."""
    found = {
        _layer_of(module): module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and type(module).__name__.endswith("Attention")
    }
    return [found[index] for index in sorted(found)]


def _find_rotary(model: PreTrainedModel, ids: Tensor) -> tuple[Rotary | None, ...] | None:
    """For each layer the table module whose output it was handed in one pass, or None if layers get no tables."""
    calls: list[tuple[nn.Module, dict[str, Any], Tensor]] = []
    handed: dict[int, Tensor] = {}

    def on_tables(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            extra = {k: v for k, v in bound.items() if k not in ("x", "position_ids", "self")}
            calls.append((module, extra, output[0]))

    def on_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tables = kwargs.get("position_embeddings")
        if isinstance(tables, tuple) and len(tables) == 2:
            handed[_layer_of(module)] = tables[0]

    attentions = _attention_modules(model)
    tables_of = [m for m in model.modules() if "Rotary" in type(m).__name__]
    hooks = [m.register_forward_hook(on_tables, with_kwargs=True) for m in tables_of]
    hooks += [m.register_forward_pre_hook(on_attention, with_kwargs=True) for m in attentions]
    try:
        model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    if not handed:
        return None
    return tuple(_rotary_of(module, handed.get(_layer_of(module)), calls) for module in attentions)


def _rotary_of(
    attention: nn.Module, cos: Tensor | None, calls: list[tuple[nn.Module, dict[str, Any], Tensor]]
) -> Rotary | None:
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    for module, arguments, output in calls:
        if output is cos and apply is not None:
            width = _rotated_width(apply, output)
            if width is None:
                return None
            rotary = Rotary(module, arguments, apply, width)
            return replace(rotary, halves=_rotates_halves(rotary, output))
    return None


def _rotates_halves(rotary: Rotary, cos: Tensor) -> bool:
    """See `Rotary.halves`; found by comparing both ways on the same numbers."""
    width = rotary.width
    if width % 2 or width != cos.shape[-1]:
        return False
    states = torch.linspace(-2, 3, 6 * width, device=cos.device).to(cos.dtype).view(1, 2, 3, width)
    angles = torch.linspace(0, 7, 3 * width, device=cos.device).view(1, 3, width)
    tables = (angles.cos().to(cos.dtype), angles.sin().to(cos.dtype))
    ours = torch.empty_like(states)
    rotary.rotate_into(states, tables, ours)
    return torch.equal(ours, rotary.rotate(states, tables))


def _rotated_width(apply: Callable[..., tuple[Tensor, Tensor]], cos: Tensor) -> int | None:
    """How many dimensions `apply` rotates: as many as the tables have, or twice as many where halves share them."""
    for width in (cos.shape[-1], 2 * cos.shape[-1]):
        states = cos.new_ones((1, 1, cos.shape[-2], width))
        try:
            if apply(states, states, cos[:1], cos[:1])[0].shape == states.shape:
                return int(width)
        except (RuntimeError, TypeError):
            continue
    return None


def _confirm_rotary(
    model: PreTrainedModel, ids: Tensor, states: States, found: tuple[Rotary | None, ...]
) -> tuple[Rotary | None, ...] | None:
    """Check layer by layer that deferred rotation gives the ordinary keys and values; None when it does not.

    A layer whose unrotated keys already equal the ordinary ones has no positions (NoPE). Since a wrong rotation
    changes all later layers, each such layer is found in a pass of its own. Values must not depend on the tables at
    all: models with a latent cache keep their rotated part there.
    """
    if len(found) != len(states):
        return None
    rotary = list(found)
    hooks = [m.register_forward_pre_hook(_defer_tables, with_kwargs=True) for m in _attention_modules(model)]
    try:
        for _ in range(len(states) + 1):
            raw, turned = _deferred_states(model, ids, tuple(rotary))
            good = [
                _close(turned_key, key) and _close(raw_value, value)
                for turned_key, (_, raw_value), (key, value) in zip(turned, raw, states, strict=True)
            ]
            if all(good):
                return tuple(rotary) if _relocates(model, ids, tuple(rotary)) else None
            wrong = good.index(False)
            if rotary[wrong] is None or not _all_close(raw[wrong], states[wrong]):
                return None
            rotary[wrong] = None
    except RuntimeError as error:
        logger.debug("deferred rotation fails in %s: %s", type(model).__name__, error)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _deferred_states(
    model: PreTrainedModel, ids: Tensor, rotary: tuple[Rotary | None, ...]
) -> tuple[States, list[Tensor]]:
    from nnm_core.states.cache import RecordingCache

    with deferred(rotary) as run:
        cache = RecordingCache(len(rotary), run)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache.recorded(), [layer.view()[0] for layer in cache.placed]


def _relocates(model: PreTrainedModel, ids: Tensor, rotary: tuple[Rotary | None, ...]) -> bool:
    """A token's unrotated first-layer state must be the same at another place (no absolute positions besides)."""
    here, _ = _deferred_states(model, ids, rotary)
    there, _ = _deferred_states(model, torch.cat([ids[:, :2], ids], dim=1), rotary)
    return _all_close(here[0], [tensor[..., 2:, :] for tensor in there[0]])


def _family_without_tables(model: PreTrainedModel, ids: Tensor, states: States) -> Positions:
    """Without rotary tables: ``free`` if nothing in the states says where a token stands, else ``fixed``.

    Two measurements: the first layer's states of the same tokens behind two others, and all layers' states with all
    position ids counted up by two (models that take none have no other way to know them than by counting keys).
    """
    behind = _states(model, torch.cat([ids[:, :2], ids], dim=1))[0]
    shifted = _states(model, ids, position_ids=torch.arange(2, 2 + ids.shape[1], device=ids.device)[None])
    free = _all_close(states[0], [tensor[..., 2:, :] for tensor in behind]) and all(
        _all_close(here, there) for here, there in zip(states, shifted, strict=True)
    )
    if free:
        return Positions("free", len(states))
    return Positions("fixed", len(states), note="its positions are absolute; states are used only where they were made")


def _length_limit(config: PreTrainedConfig) -> int | None:
    text_config = config.get_text_config(decoder=True)
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = parameters.values() if all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    limits = [
        int(p.get("original_max_position_embeddings") or text_config.max_position_embeddings)
        for p in nested
        if p.get("rope_type") in _LENGTH_DEPENDENT
    ]
    return min(limits, default=None)
