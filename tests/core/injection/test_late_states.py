"""States that come while the question is already read, from a plan to greedy tokens: what reading gives.

On a CPU the passes are those of a GPU, without its graphs; where there is a GPU, they are captured and replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.families import random_ids
from torch import Tensor

from nnm_core.demo.dataset import passages
from nnm_core.injection import static
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.prefill import forward, prefill
from nnm_core.injection.static import StaticForward, static_forward
from nnm_core.model.load import LoadedModel, ModelSettings, load_model
from nnm_core.model.prompt import Segment
from nnm_core.records import Memory
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.codecs import Reader, make_codec, manifest_of
from nnm_core.states.state import PlacedState
from nnm_core.storage.blobs import BlobStore, open_blobs

TOKENS = 12
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_devices(dtype: str) -> list[Any]:
    return [pytest.param(("cpu", dtype), id="cpu"), pytest.param(("cuda", dtype), id="cuda", marks=NO_GPU)]


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    device, dtype = request.param
    found = load_model("nnm-mini", ModelSettings(device=device, dtype=dtype))
    if device == "cpu":  # as on a GPU, without graphs
        found = replace(found, workspace={})
        found.workspace["static"] = StaticForward(found, graphs=False)
        monkeypatch.setattr("nnm_core.states.capture.comes_late", lambda model: True)
        monkeypatch.setattr("nnm_core.injection.prefill.new_cache", lent)
    yield found
    assert not static_forward(found).refusal and static_forward(found).replays


def lent(model: LoadedModel, capacity: int) -> PlacedCache:
    cache = static_forward(model).lend(capacity)
    assert cache is not None
    return cache


def prompt(model: LoadedModel, count: int) -> list[Segment]:
    texts = [passage.text for passage in passages()][:count]
    rows = [tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    memories = [Segment(row, Memory(str(number), "", {}, "test")) for number, row in enumerate(rows)]
    return [*memories, Segment(tuple(random_ids(30, seed=count)), None)]


def keep(model: LoadedModel, store: BlobStore, segments: list[Segment], codec_name: str) -> Plan:
    """The states of all segments but the last, each read behind those before it, as they come out of `store`."""
    codec, reader = make_codec(codec_name), Reader(model, lambda: EMPTY)
    before: list[int] = []
    for segment in segments[:-1]:
        assert segment.memory is not None
        left = place(model, capture(model, [before])[0], 0) if before else EMPTY
        state = capture(model, [segment.ids], left)[0]
        store.put(segment.memory.id, codec.encode(state), manifest_of(state, codec, model.fingerprint))
        before += segment.ids

    def find(segment: Segment, left: str, start: int) -> PlacedState | None:
        assert segment.memory is not None
        blob = store.get(segment.memory.id)
        assert blob is not None
        state = codec.decode(blob.tensors, blob.manifest, reader)
        return None if state is None else place(model, state, start)

    return make_plan(segments, "exact", find, lambda *_: None)


@torch.inference_mode()
def greedy(model: LoadedModel, plan: Plan) -> tuple[list[int], Tensor]:
    cache, logits = prefill(model, plan, room=TOKENS)
    tokens = [int(logits.argmax())]
    first = logits.float().cpu()
    while len(tokens) < TOKENS:
        tokens.append(int(forward(model, cache, tokens[-1:]).argmax()))
    return tokens, first


@pytest.mark.parametrize("model", on_devices("float32"), indirect=True)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("where", ["ram", "file"])
def test_they_give_the_tokens_of_reading(model: LoadedModel, count: int, where: str, tmp_path: Path) -> None:
    segments = prompt(model, count)
    wanted, logits = greedy(model, read_plan(segments))
    plan = keep(model, open_blobs(None if where == "ram" else tmp_path), segments, "native")
    assert plan.tokens_injected == sum(len(segment.ids) for segment in segments[:-1])
    for _ in range(2):
        found, ours = greedy(model, plan)
        assert found == wanted
        assert float((ours - logits).abs().max()) < 1e-3


@pytest.mark.parametrize("model", on_devices("bfloat16"), indirect=True)
def test_a_long_prefix_in_16_bits_is_near_to_reading(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mask as with one, as near as two readings in 16 bits are to each other."""
    monkeypatch.setattr(static, "SHORTEST_PREFIX", 512)
    monkeypatch.setattr(static, "has_flash", lambda *_: True)
    segments = prompt(model, 10)
    assert sum(len(segment.ids) for segment in segments) > 800
    _, logits = greedy(model, read_plan(segments))
    plan = keep(model, open_blobs(None), segments, "native")
    _, ours = greedy(model, plan)
    assert float((ours - logits).abs().max()) < 0.5
