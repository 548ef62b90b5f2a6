"""Decoding: the tokens of transformers' own `generate`, text that never has to be taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import torch
from tests.core.families import byte_tokenizer, loaded, make, random_ids
from tests.core.model.toys import sentencepiece_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nnm_core.errors import InvalidInputError
from nnm_core.injection import generate
from nnm_core.injection.generate import Decoded, DecodeSettings, TextStream, decode
from nnm_core.injection.prefill import forward
from nnm_core.model.load import LoadedModel, wrap_model
from nnm_core.states.cache import PlacedCache

EOS = 2
WEIRD = "Grüße, 世界! 👩‍👩‍👧‍👦 naïve \ufffd e\u0301 \n\t end"


@cache
def reader() -> LoadedModel:
    """As many tokens as its tokenizer knows, so that whatever it says can be decoded."""
    return wrap_model(make("qwen3", vocab_size=261), byte_tokenizer(), name="reader")


def run(model: LoadedModel, ids: Sequence[int], settings: DecodeSettings) -> Iterator[Decoded]:
    with torch.inference_mode():
        placed = PlacedCache(model.layers)
        logits = forward(model, placed, list(ids))
    return decode(model, placed, logits, settings)


def tokens_of(steps: Sequence[Decoded]) -> list[int]:
    return [step.token_id for step in steps]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the model is made to say, token by token; taken from the front."""
    said: list[int] = []

    def scripted(model: object, placed: object, ids: list[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(said.pop(0)), 600).float()

    monkeypatch.setattr(generate, "forward", scripted)
    return said


def say(script: list[int], ids: Sequence[int], settings: DecodeSettings, tokenizer: object = None) -> list[Decoded]:
    script[:] = [*ids, EOS]
    model = reader() if tokenizer is None else wrap_model(make("qwen3", vocab_size=600), tokenizer, name="scripted")
    first = torch.nn.functional.one_hot(torch.tensor(script.pop(0)), 600).float()
    return list(decode(model, PlacedCache(model.layers), first, settings))


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text)["input_ids"])


# --- which tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "mistral-window", "gpt2", "bloom", "gpt-oss"])
def test_greedy_equals_generate(name: str) -> None:
    model, prompt = loaded(name), random_ids(25, seed=4)
    row = torch.tensor([prompt])
    expected = model.hf.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=24, do_sample=False)
    assert tokens_of(list(run(model, prompt, DecodeSettings(max_tokens=24)))) == expected[0, 25:].tolist()


def test_the_reader_model(mini: LoadedModel) -> None:
    text = "<|im_start|>user\nThe bins are red.\n\nWhat colour are the bins?<|im_end|>\n<|im_start|>assistant\n"
    prompt = mini.tokenizer(text)["input_ids"]
    row = torch.tensor([prompt])
    expected = mini.hf.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False)
    steps = list(run(mini, prompt, DecodeSettings(max_tokens=12)))
    assert tokens_of(steps) == expected[0, len(prompt) :].tolist()
    decoded = mini.tokenizer.decode(tokens_of(steps), skip_special_tokens=True)
    assert "".join(step.text for step in steps) == decoded.lstrip()


def test_seeds_repeat() -> None:
    prompt = random_ids(10, seed=1)

    def sampled(seed: int) -> list[int]:
        return tokens_of(list(run(reader(), prompt, DecodeSettings(max_tokens=20, temperature=1.5, seed=seed))))

    assert sampled(7) == sampled(7)
    assert len({tuple(sampled(seed)) for seed in range(5)}) == 5


def test_sampling_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(run(reader(), random_ids(10, seed=1), DecodeSettings(max_tokens=5, temperature=1.0, seed=9)))
    assert torch.equal(torch.rand(1), expected)


def test_without_a_seed_answers_differ() -> None:
    settings = DecodeSettings(max_tokens=20, temperature=2.0)
    prompt = random_ids(10, seed=1)
    assert tokens_of(list(run(reader(), prompt, settings))) != tokens_of(list(run(reader(), prompt, settings)))


@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(max_tokens=12, temperature=1.0, top_k=1, seed=1),
        DecodeSettings(max_tokens=12, temperature=1.0, top_p=1e-6, seed=1),
        DecodeSettings(max_tokens=12, temperature=1e-4, seed=1),
        DecodeSettings(max_tokens=12, temperature=0.0, top_p=0.5, top_k=3, seed=1),
    ],
)
def test_settings_that_amount_to_greedy(settings: DecodeSettings) -> None:
    prompt = random_ids(10, seed=1)
    greedy = tokens_of(list(run(reader(), prompt, DecodeSettings(max_tokens=12))))
    assert tokens_of(list(run(reader(), prompt, settings))) == greedy


def drawn(logits: Tensor, **settings: float) -> Counter[int]:
    choose = generate._Chooser(DecodeSettings(temperature=1.0, seed=5, **settings), torch.device("cpu"))
    return Counter(choose(logits) for _ in range(1500))


def test_the_distribution_is_that_of_the_logits() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = drawn(probabilities.log())
    assert all(abs(counts[token] / 1500 - float(p)) < 0.05 for token, p in enumerate(probabilities))


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(drawn(logits, top_k=2)) == {0, 1}
    assert set(drawn(logits, top_p=0.7)) == {0, 1}
    assert set(drawn(logits, top_p=0.9)) == {0, 1, 2}
    assert abs(drawn(logits, top_k=2)[0] / 1500 - 0.625) < 0.05


# --- when it ends -----------------------------------------------------------------------------------------------


def test_an_end_token_ends_it_and_is_counted(script: list[int]) -> None:
    steps = say(script, ids_of("yes"), DecodeSettings())
    assert tokens_of(steps) == [*ids_of("yes"), EOS]
    assert [step.finish_reason for step in steps] == [None, None, None, "stop"]
    assert "".join(step.text for step in steps) == "yes"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_tokens(script: list[int], limit: int) -> None:
    steps = say(script, ids_of("a long answer"), DecodeSettings(max_tokens=limit))
    assert len(steps) == limit
    assert [step.finish_reason for step in steps] == [None] * (limit - 1) + ["length"]
    assert "".join(step.text for step in steps) == "a long answer"[:limit].rstrip() + ("" if limit != 2 else " ")


def test_an_answer_that_ends_at_once(script: list[int]) -> None:
    steps = say(script, [], DecodeSettings())
    assert [(step.token_id, step.text, step.finish_reason) for step in steps] == [(EOS, "", "stop")]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("Observation", ("Observation:",), "Observation"),
        ("stop", ("stop",), ""),
        ("a世界b", ("界",), "a世"),
        ("xyz", ("z", "yz"), "x"),
    ],
)
def test_stop_strings(script: list[int], text: str, stop: tuple[str, ...], expected: str) -> None:
    """Every token is a byte here, so each of them spans tokens; nothing of them is ever sent."""
    steps = say(script, ids_of(text), DecodeSettings(stop=stop))
    sent = ""
    for step in steps:
        sent += step.text
        assert expected.startswith(sent)
    assert sent == expected
    assert steps[-1].finish_reason == "stop"


def test_what_looked_like_a_stop_string_is_sent_at_the_end(script: list[int]) -> None:
    steps = say(script, ids_of("end <|"), DecodeSettings(stop=("<|stop|>",), max_tokens=6))
    assert "".join(step.text for step in steps) == "end <|"
    assert steps[-1].finish_reason == "length"


# --- the text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, sentencepiece_tokenizer])
def test_characters_are_never_split(script: list[int], make_tokenizer: type[PreTrainedTokenizerBase]) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(WEIRD, add_special_tokens=False)["input_ids"]
    steps = say(script, ids, DecodeSettings(max_tokens=500), tokenizer)
    assert "".join(step.text for step in steps) == WEIRD
    assert sum(step.text.count("\ufffd") for step in steps) == 1, "only the one that was meant"


def test_streamed_text_is_the_text_of_the_tokens() -> None:
    for seed in range(5):
        steps = list(run(reader(), random_ids(9, seed=seed), DecodeSettings(max_tokens=40, temperature=2.0, seed=seed)))
        ids = [token for token in tokens_of(steps) if token not in reader().eos_token_ids]
        whole = reader().tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(step.text for step in steps) == whole.lstrip()


def test_blanks_in_front_are_dropped(script: list[int]) -> None:
    assert "".join(step.text for step in say(script, ids_of(" \n yes "), DecodeSettings())) == "yes "


def test_cleaning_up_does_not_take_text_back(script: list[int]) -> None:
    tokenizer = byte_tokenizer(clean_up_tokenization_spaces=True)
    text = "do n't , he said ."
    assert "".join(step.text for step in say(script, ids_of(text), DecodeSettings(), tokenizer)) == text


def test_control_tokens_are_not_text(script: list[int]) -> None:
    assert "".join(step.text for step in say(script, [*ids_of("a"), 3, *ids_of("b")], DecodeSettings())) == "ab"


def test_a_stream_can_be_finished_twice() -> None:
    stream = TextStream(byte_tokenizer(), ())
    stream.push(ids_of("é")[0])
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


# --- a plain generator ------------------------------------------------------------------------------------------


def test_nothing_is_computed_before_it_is_asked_for(script: list[int]) -> None:
    script[:] = ids_of("bcdef")
    first = torch.nn.functional.one_hot(torch.tensor(ids_of("a")[0]), 600).float()
    steps = decode(reader(), PlacedCache(4), first, DecodeSettings())
    assert len(script) == 5
    assert next(steps).text == "a"
    assert len(script) == 5
    assert next(steps).text == "b"
    assert len(script) == 4
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
    assert len(script) == 4


def test_errors_reach_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("out of everything")

    steps = run(reader(), random_ids(5, seed=1), DecodeSettings())
    next(steps)
    monkeypatch.setattr(generate, "forward", fail)
    with pytest.raises(RuntimeError, match="out of everything"):
        next(steps)
    with pytest.raises(StopIteration):
        next(steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"stop": ("",)},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        DecodeSettings(**settings)
    assert caught.value.hint


def test_top_k_beyond_the_vocabulary() -> None:
    assert len(list(run(reader(), [7, 8], DecodeSettings(max_tokens=3, temperature=1.0, top_k=10_000, seed=1)))) == 3
