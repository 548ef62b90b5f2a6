"""Another model writes questions: sampling with shared prompts, scoring, tuning, and what is kept from training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from calibrate import written_cases
from make_rows import Source, written_articles, written_passage
from recipe.corpus import Document
from recipe.examples import Article, Builder, Passage
from recipe.layout import ANSWER, DONT_KNOW
from recipe.reading_sets import Reading
from recipe.synonyms import opposite
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from write_questions import write
from write_with_model import ForeignDecoder, ForeignWriter, examples, tune

TRAINING = Path(__file__).parents[2] / "packages" / "nnm-mini" / "training"
PASSAGES = [
    "Marie Curie was born in Warsaw in 1867. She won the Nobel Prize twice.",
    "The lock is old.",
    "Paris is the capital of France.",
]


@pytest.fixture
def writer() -> ForeignWriter:
    """A tiny untrained Llama with grouped heads behind the writer's interface."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=16384, num_attention_heads=4, num_key_value_heads=2, **shape)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(TRAINING / "tokenizer"))
    settings = {
        "passages_per_batch": 4,
        "samples": 2,
        "longest_passage": 200,
        "longest_text": 12,
        "answer_temperature": 1.0,
        "question_temperature": 1.0,
        "least_log_probability": -99.0,
    }
    return ForeignWriter(ForeignDecoder(LlamaForCausalLM(config).eval(), tokenizer), settings)


def test_shared_prompts_sample_what_generate_decodes(writer: ForeignWriter) -> None:
    """Near zero temperature, every sample of every prompt is the greedy continuation, whatever is beside it."""
    prompts = writer.ids([writer.writing(passage) for passage in PASSAGES])
    found = writer.foreign.sample(prompts, 2, 12, (1e-5, 1e-5), writer.newline)
    end = writer.tokenizer.eos_token_id
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        said = writer.foreign.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=end)
        row = said[0, len(prompt) :].tolist()
        row = row[: row.index(end)] if end in row else row
        assert found[2 * number] == found[2 * number + 1] == row


def test_scores_do_not_depend_on_the_batch(writer: ForeignWriter) -> None:
    """A likelihood is that of one plain pass, also beside longer sequences."""
    prompts = writer.reading(PASSAGES, [(0, "Where was Curie born?"), (1, "What is old?"), (2, "What is Paris?")])
    answers = writer.ids([writer.answer(text) for text in ("Warsaw", "The lock", "the capital of France")])
    together = writer.foreign.score(prompts, answers, 3)
    for prompt, answer, (exact, mean) in zip(prompts, answers, together, strict=True):
        with torch.no_grad():
            logits = writer.foreign.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logs = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        assert mean == pytest.approx(float(logs.mean()), abs=1e-4)
        assert exact == (logits.argmax(-1).tolist() == answer)


def test_scores_beside_other_questions_are_those_of_a_prompt_of_its_own(writer: ForeignWriter) -> None:
    """Questions that share the reading of their passage do not see each other, and stand where they stand alone."""
    asked = [(0, "Where was Curie born?", "Warsaw"), (2, "What is Paris?", "the capital of France")]
    asked += [(0, "What did she win?", "the Nobel Prize"), (0, "When was Curie born?", "1867")]
    together = writer.scores(PASSAGES, asked)
    prompts = writer.reading(PASSAGES, [(index, question) for index, question, _ in asked])
    alone = writer.foreign.score(prompts, writer.ids([writer.answer(answer) for _, _, answer in asked]), 4)
    for (exact, mean), (exact_alone, mean_alone) in zip(together, alone, strict=True):
        assert exact == exact_alone and mean == pytest.approx(mean_alone, abs=1e-4)


def test_questions_a_model_declines_become_declined_turns_where_the_context_has_no_answer() -> None:
    """The article's other passage answers the foreign question: beside it, it is not declined; alone, it may be."""
    first = Passage("Ann Lee lives in Oslo. She is a nurse.", [("Where does Ann Lee live?", "Oslo")], [])
    second = Passage("Bob Ray lives in Rome. He is a cook.", [("Where does Bob Ray live?", "Rome")], [])
    article = Article("", [first, second], checked=True)
    assert ("Where does Bob Ray live?", "Rome") in Builder(Random(0)).absent(article, 0, 2)
    first.declined = [("Where does Bob Ray live?", "Rome")]
    builder = Builder(Random(3), unanswerable=0.15)
    seen = set()
    for _ in range(300):
        for segments in builder.from_article(Article("", article.passages, checked=True)):
            text = "".join(segment.text for segment in segments)
            if "Where does Bob Ray live?" in text and DONT_KNOW in [
                s.text[1:-10] for s in segments if s.loss == ANSWER
            ]:
                asked = text.split("Where does Bob Ray live?")[1].split("<|im_end|>")[1]
                if DONT_KNOW in asked:
                    assert "Bob Ray lives in Rome" not in text
                    seen.add(True)
    assert seen


def test_tuning_teaches_to_ask_and_examples_decline_what_is_absent(writer: ForeignWriter) -> None:
    """The loss of a repeated example falls; with `declined` 1 every read question is put to another passage."""
    reading = Reading("squad", PASSAGES[0], (("Where was Curie born?", "Warsaw"),), (PASSAGES[2],))
    drawn = examples(writer, [reading], Random(1), 1.0)
    kinds = [next(drawn) for _ in range(20)]
    assert {answer for _, answer in kinds} == {
        writer.answer(DONT_KNOW),
        writer.answer("Warsaw\nQuestion: Where was Curie born?"),
    }
    assert all((PASSAGES[2] in prompt) == (DONT_KNOW in answer) for prompt, answer in kinds)
    prompts, answers = writer.ids([kinds[0][0]]), writer.ids([kinds[0][1]])
    before = writer.foreign.score(prompts, answers, 1)[0][1]
    writer.foreign.model.train()
    tune(writer, iter([kinds[0]] * 10_000), 4.0, 0.01, 2)
    writer.foreign.model.eval()
    assert writer.foreign.score(prompts, answers, 1)[0][1] > before + 1.0


def test_samples_that_are_left_out_are_counted_by_why(writer: ForeignWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question for each answer of a passage; a second one is repeated, what cannot be read is malformed."""
    said = ["Warsaw\nQuestion: Where was Curie born?", "Warsaw\nQuestion: What is her town?", "old", "old"]
    said += ["Paris\nQuestion: What is Paris?", "the capital\nQuestion: What is Paris to France?"]
    monkeypatch.setattr(writer.decoder, "sample", lambda *_: writer.ids(said))
    assert writer.candidates(PASSAGES) == [
        (0, "Where was Curie born?", "Warsaw"),
        (2, "What is Paris to France?", "the capital"),
    ]
    assert writer.counts == {"sampled": 6, "malformed": 3, "repeated": 1, "answered back": 0, "declined": 0}


def test_opposite_changes_one_word() -> None:
    """An opposite word, or a `not`, or nothing where neither fits."""
    rng = Random(0)
    assert opposite("Which is the largest city?", rng) == "Which is the smallest city?"
    assert opposite("When was it founded?", rng) == "When was it dissolved?"
    assert opposite("Why was the road painted?", rng) in {None, "Why was not the road painted?"}
    assert opposite("Who is Ann?", rng) is None


def test_passages_of_held_out_articles_are_kept_apart(tmp_path: Path) -> None:
    """One article in 400 goes to `held-out`, notes of facts are added to the others, and all is marked as done."""
    body = (
        "The town lies on a river in the north of the country and has a long history of trade with its neighbours. " * 4
    )
    titles = [f"Town {number}" for number in range(1200)]
    data = tmp_path / "data"
    (data / "wikipedia").mkdir(parents=True)
    text = "\n<|endoftext|>\n".join(f"{title}\n{title} is a town. {body}" for title in titles)
    (data / "wikipedia" / "a.txt").write_text(text, encoding="utf-8")
    program = (
        "import sys, cut_passages; from recipe.overlap import Blocklist;"
        "cut_passages.blocklist = lambda data: Blocklist([]); cut_passages.main()"
    )
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--notes", "0.1"]
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=TRAINING, check=True)
    assert (tmp_path / "out" / "done").exists()

    def articles(folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]

    held_out, others = articles(tmp_path / "out" / "held-out"), articles(tmp_path / "out")
    kept_apart = {article["title"] for article in held_out}
    named = {article["title"] for article in others if article["title"]}
    assert kept_apart and not kept_apart & named and kept_apart | named == set(titles)
    assert sum(not article["title"] for article in others) == round(0.1 * len(named))


def test_calibration_cases_of_written_questions(tmp_path: Path) -> None:
    """Two questions a passage can be answered; a third is put where its answer is absent."""
    passage = "Ann lives in Oslo. Bob lives in Rome. Carl lives in Lima."
    pairs = [["Where does Ann live?", "Oslo"], ["Where does Bob live?", "Rome"], ["Where does Carl live?", "Lima"]]
    article = {"title": "People", "passages": [{"text": passage, "pairs": pairs}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(article) + "\n")
    cases = written_cases(tmp_path, 10)
    assert sorted(answer for _, answer in cases) == ["", "Oslo", "Rome"]
    (prompt,) = [prompt for prompt, answer in cases if not answer]
    assert "Lima" not in prompt and "Where does Carl live?" in prompt


def test_articles_are_written_with_what_the_model_answers_and_declines(
    writer: ForeignWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept pairs stand under their passage, and questions of the other passage that the model declines."""
    texts = ["Ann Lee lives in Oslo.", "Bob Ray lives in Rome."]
    (tmp_path / "in.jsonl").write_text(json.dumps({"title": "People", "passages": texts}) + "\n", encoding="utf-8")
    asked = [(0, "Where does Ann Lee live?", "Oslo"), (1, "Where does Bob Ray live?", "Rome")]
    monkeypatch.setattr(writer, "candidates", lambda passages: asked)
    monkeypatch.setattr(writer, "scores", lambda passages, candidates: [(True, 0.0) for _ in candidates])
    writer.settings["declined"] = 1
    write(writer, [tmp_path / "in.jsonl"], tmp_path / "out", 0, 1e12)
    (file,) = (tmp_path / "out").glob("*.jsonl")
    article = json.loads(file.read_text(encoding="utf-8"))
    assert [passage["pairs"] for passage in article["passages"]] == [[list(pair)] for _, *pair in asked]
    assert [passage["declined"] for passage in article["passages"]] == [[list(asked[1][1:])], [list(asked[0][1:])]]
    (read,) = (written_passage(row) for row in article["passages"][:1])
    assert read == Passage(texts[0], [asked[0][1:]], [asked[1][1:]])


def test_rows_wait_for_written_questions_that_are_used_up(tmp_path: Path) -> None:
    line = {"title": "Bergen", "passages": [{"text": "Bergen is in Norway.", "pairs": [["Where is it?", "Norway"]]}]}
    (tmp_path / "r0-0000.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    documents = [Document("Oslo", "Oslo was founded in 1048 by Harald. It is the capital of Norway.")]

    def source(texts: Iterator[Document], wait: bool) -> Source:
        rng = Random(1)
        return Source(Builder(rng), texts, iter(()), written_articles(tmp_path, 0, 1, rng, passes=2), [], wait)

    unread, read = iter(documents), iter(documents)
    waiting, filling = source(unread, wait=True), source(read, wait=False)
    for _ in range(2):
        assert waiting.draw("written") and filling.draw("written")
    assert waiting.draw("written") == []
    filling.draw("written")
    assert (list(unread), list(read)) == (documents, [])
    # Questions that arrive later are drawn.
    (tmp_path / "r0-0001.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert waiting.draw("written")
