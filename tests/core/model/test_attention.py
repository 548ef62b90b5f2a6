"""The one seam: interventions run in their own context, in every layer, and leave nothing behind."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.core.families import FAMILIES, loaded, make, random_ids
from tests.core.reading import read_logits
from transformers import DynamicCache, StaticCache

from nnm_core.injection.prefill import forward
from nnm_core.model import attention
from nnm_core.model.attention import intervene
from nnm_core.states.cache import PlacedCache

IDS = random_ids(12, seed=1)
SEAM = [name for name in FAMILIES if loaded(name).intervenes]


class Watch:
    """Passes everything on, and remembers which layers came."""

    def __init__(self, factor: float = 1.0) -> None:
        self.layers: list[int] = []
        self.factor = factor

    def __call__(self, attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        self.layers.append(module.layer_idx)
        output, weights = attend(module, query, key, value, mask, **kwargs)
        return output * self.factor, weights


@pytest.mark.parametrize("name", SEAM)
def test_every_layer_comes_once_and_passing_on_changes_nothing(name: str) -> None:
    model = loaded(name)
    plain = read_logits(model, IDS)
    watch = Watch()
    with intervene(watch):
        assert torch.equal(read_logits(model, IDS), plain)
    assert sorted(watch.layers) == [0, 1, 2, 3]


def test_most_families_have_the_seam() -> None:
    assert len(SEAM) >= 20
    assert {name for name in FAMILIES if name not in SEAM} <= {"stablelm", "bloom", "mpt"}


def test_it_does_what_it_says_and_is_gone_afterwards() -> None:
    model = loaded("llama")
    plain = read_logits(model, IDS)
    with intervene(Watch(0.0)):
        assert not torch.equal(read_logits(model, IDS), plain)
    assert torch.equal(read_logits(model, IDS), plain)


def test_it_is_gone_after_an_exception() -> None:
    model = loaded("llama")
    plain = read_logits(model, IDS)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("from the intervention")

    with pytest.raises(RuntimeError, match="from the intervention"), intervene(fail):
        read_logits(model, IDS)
    assert torch.equal(read_logits(model, IDS), plain)


def test_the_inner_one_counts() -> None:
    outer, inner = Watch(), Watch()
    with intervene(outer):
        with intervene(inner):
            read_logits(loaded("llama"), IDS)
        assert (len(outer.layers), len(inner.layers)) == (0, 4)
        read_logits(loaded("llama"), IDS)
    assert len(outer.layers) == 4


def test_other_threads_and_tasks_see_none_of_it() -> None:
    model = loaded("llama")
    plain = read_logits(model, IDS)

    async def task(factor: float) -> torch.Tensor:
        with intervene(Watch(factor)):
            await asyncio.sleep(0)
            return read_logits(model, IDS)

    async def both() -> list[torch.Tensor]:
        return list(await asyncio.gather(task(0.0), task(1.0)))

    with intervene(Watch(0.0)), ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(logits, plain) for logits in pool.map(lambda _: read_logits(model, IDS), range(8)))
    changed, same = asyncio.run(both())
    assert torch.equal(same, plain)
    assert not torch.equal(changed, plain)


def test_installing_twice_is_once() -> None:
    hf = make("llama")
    assert attention.install(hf, "sdpa")
    assert attention.install(hf, hf.config._attn_implementation)
    assert hf.config._attn_implementation == "nnm_sdpa"


class Masks(Watch):
    """Passes everything on, and remembers for each layer whether it came without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.none: list[bool] = []

    def __call__(self, attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        self.none.append(mask is None)
        return super().__call__(attend, module, query, key, value, mask, **kwargs)


@pytest.mark.parametrize("name", SEAM)
@torch.inference_mode()
def test_a_long_pass_behind_a_short_one_is_what_reading_both_at_once_is(name: str) -> None:
    model, ids = loaded(name), random_ids(340, seed=3)
    cache = PlacedCache(model.layers)
    forward(model, cache, ids[:40])
    logits = forward(model, cache, ids[40:])
    torch.testing.assert_close(logits, read_logits(model, ids)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "rows"), [(40, True), (200, False)])  # 300 behind 40, 140 behind 200
@torch.inference_mode()
def test_only_long_passes_behind_short_ones_go_without_a_mask(first: int, rows: bool) -> None:
    model, ids, watch = loaded("llama"), random_ids(340, seed=3), Masks()
    cache = PlacedCache(model.layers)
    forward(model, cache, ids[:first])
    with intervene(watch):
        forward(model, cache, ids[first:])
    assert watch.none == [rows] * 4


@torch.inference_mode()
def test_a_cache_with_room_for_tokens_to_come_keeps_its_mask() -> None:
    model, ids = loaded("llama"), torch.tensor([random_ids(300, seed=3)])
    cache = StaticCache(model.hf.config, max_cache_len=400)
    logits = model.hf(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
    torch.testing.assert_close(logits, read_logits(model, ids[0].tolist()), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_padding_keeps_its_mask() -> None:
    model, ids = loaded("llama"), random_ids(340, seed=3)
    padded = torch.tensor([[0] * 8 + ids])
    cache, real = DynamicCache(), (torch.arange(348) >= 8).long()[None]
    places = (torch.arange(348) - 8).clamp_min(0)[None]
    for part in (slice(0, 40), slice(40, None)):
        logits = model.hf(
            input_ids=padded[:, part],
            attention_mask=real[:, : part.stop],
            position_ids=places[:, part],
            past_key_values=cache,
            use_cache=True,
        ).logits[0, -1]
    torch.testing.assert_close(logits, read_logits(model, ids)[-1], rtol=1e-4, atol=1e-4)
