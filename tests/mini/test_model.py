"""The training view of the model agrees with `transformers`, its masks keep passages apart, its storage is close."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from recipe.config import Shape
from recipe.decode import Decoder
from recipe.layout import BETWEEN, SHARED, chat, memory_layout
from recipe.model import Reader, block, dense_mask, positions_of, rms, rotary, to_transformers, transformers_config
from recipe.pack import Packer, encode
from recipe.quantise import quantise, save_shards
from torch import Tensor

from nnm_mini._weights import expand

SHAPE = Shape(300, 64, 2, 4, 2, 16, 128, 50000.0, 256)


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.manual_seed(0)
    model = Reader(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.ndim == 2 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def reference(reader: Reader):  # type: ignore[no-untyped-def]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**transformers_config(SHAPE))).eval()
    model.load_state_dict({**to_transformers(reader.state_dict()), "lm_head.weight": reader.embedding})
    return model


@torch.no_grad()
def logits(reader: Reader, ids: Tensor, example: Tensor, group: Tensor) -> Tensor:
    x = torch.nn.functional.embedding(ids, reader.embedding)
    cosine, sine = rotary(positions_of(example), SHAPE)
    for layer in reader.blocks:
        x = block(x, cosine, sine, dense_mask(example, group), SHAPE.head_dim, *layer.weights())
    return torch.nn.functional.linear(rms(x, reader.final_norm), reader.embedding)


def test_packed_examples_give_what_transformers_gives_for_each_alone(reader: Reader, reference) -> None:  # type: ignore[no-untyped-def]
    ids = torch.randint(5, 300, (1, 50), generator=torch.Generator().manual_seed(1))
    example = torch.ones_like(ids)
    example[:, 20:] = 2
    packed = logits(reader, ids, example, torch.zeros_like(ids))
    with torch.no_grad():
        alone = [reference(input_ids=part).logits for part in (ids[:, :20], ids[:, 20:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=2e-4, rtol=1e-4)


def test_an_independent_passage_sees_the_prefix_and_itself_only(reader: Reader) -> None:
    ids = torch.randint(5, 300, (1, 40), generator=torch.Generator().manual_seed(2))
    group = torch.zeros_like(ids)
    group[:, 5:14], group[:, 14:16], group[:, 16:25] = 1, BETWEEN, 2
    before = logits(reader, ids, torch.ones_like(ids), group)
    changed = ids.clone()
    changed[:, 5:16] = torch.randint(5, 300, (1, 11), generator=torch.Generator().manual_seed(3))
    after = logits(reader, changed, torch.ones_like(ids), group)
    torch.testing.assert_close(before[:, 16:25], after[:, 16:25])
    assert (before[:, 25:] - after[:, 25:]).abs().max() > 1e-2  # the question sees the changed passage
    separator = changed.clone()
    separator[:, 5:14] = ids[:, 5:14]
    assert (logits(reader, separator, torch.ones_like(ids), group)[:, 30] - before[:, 30]).abs().max() > 1e-3


def test_cached_sampling_and_scoring_agree_with_transformers(reader: Reader, reference) -> None:  # type: ignore[no-untyped-def]
    ids = torch.randint(5, 300, (2, 40), generator=torch.Generator().manual_seed(4))
    prompts = [ids[0, :30].tolist(), ids[1, :17].tolist()]
    decoder = Decoder(reader, 60)
    sampled = decoder.sample(prompts, 2, 10, (1e-6, 1e-6), 299)
    for row, prompt in zip(sampled, [prompts[0], prompts[0], prompts[1], prompts[1]], strict=True):
        start = torch.tensor([prompt])
        greedy = reference.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=[2, 0],
            pad_token_id=0,
        )
        assert row == greedy[0, len(prompt) :].tolist()[: len(row)]
    wrong = [*sampled[2][:-1], sampled[2][-1] ^ 1]
    (right, likelihood), (other, _) = decoder.score(prompts, [sampled[0], wrong], 4)
    assert right
    assert not other
    assert likelihood > -10


def test_stored_weights_come_back_within_half_a_step(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32) * np.linspace(0.01, 3, 40)[
        :, None
    ].astype(np.float32)
    gain = np.linspace(0, 2, 8, dtype=np.float32)
    save_shards(
        {"a.weight": weight, "b.weight": weight[:10], "norm.weight": gain}, tmp_path / "stored", most_bytes=3000
    )
    assert len(list((tmp_path / "stored").iterdir())) == 2
    (tmp_path / "out").mkdir()
    expand(tmp_path / "stored", tmp_path / "out")
    from safetensors.numpy import load_file

    back = load_file(tmp_path / "out" / "model.safetensors")
    _, scale = quantise(weight)
    assert (np.abs(back["a.weight"] - weight) <= scale[:, None] * 0.5001).all()
    np.testing.assert_array_equal(back["norm.weight"], gain)


def test_the_trained_layout_is_the_prompt_that_is_measured(training: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(training / "tokenizer" / "tokenizer.json"))
    passages, question = ["Anna lives in Oslo.", "Title: The code is 4711 (really)."], "Where does Anna live?"
    whole = tokenizer.encode(chat(passages, question), add_special_tokens=False).ids
    for seed in range(400):
        segments = memory_layout(passages, [(question, "Oslo")], Random(seed), independent=True)
        row = encode(tokenizer, [segments])[0]
        assert set(row["group"]) <= {SHARED, 1, 2, BETWEEN}
        if row["tokens"].tolist()[: len(whole)] == whole:
            break
    else:
        pytest.fail("no layout of 400 is the engine's")
    assert tokenizer.decode(row["tokens"][len(whole) :].tolist()).strip() == "Oslo"


def test_packed_rows_hold_every_example_once_and_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    packer = Packer(64, tmp_path, "rows", rows_per_shard=4)
    examples = [rng.integers(3, 9, rng.integers(5, 60)).astype(np.uint16) for _ in range(50)]
    for tokens in examples:
        packer.add(
            {"tokens": tokens, "loss": np.full(len(tokens), 1, np.uint8), "group": np.zeros(len(tokens), np.int8)}
        )
    packer.flush(everything=True)
    found = []
    for file in sorted(tmp_path.glob("*.npz")):
        with np.load(file) as arrays:
            for tokens, example in zip(arrays["tokens"], arrays["example"], strict=True):
                found += [tuple(tokens[example == number]) for number in range(1, example.max() + 1)]
    assert sorted(found) == sorted(tuple(tokens) for tokens in examples)
