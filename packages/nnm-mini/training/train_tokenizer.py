"""Train the byte-level BPE tokenizer and save it as a `transformers` tokenizer with the ChatML template.

python train_tokenizer.py --data DATA --out tokenizer [--vocabulary 16384] [--megabytes 36]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from recipe.corpus import documents
from recipe.reading_sets import load_reading_sets
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = r"'(?i:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""GPT-2's split, but every digit is a token of its own: codes and dates are then copied digit by digit."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (' ' if message['role'] == 'assistant' "
    "else '') + (message['content'] | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML; an answer starts with a space, so that it has the same tokens as in the passage it is copied from."""


def sample_text(data: Path, megabytes: float) -> Iterator[str]:
    """An equal share of every Wikipedia file, and all reading-set questions."""
    files = sorted(data.glob("wikipedia/*.txt*"))
    for file in files:
        left = megabytes * 1e6 / len(files)
        for document in documents(file):
            if document.held_out:
                continue
            yield document.title + "\n" + document.text[:20000]
            left -= len(document.text[:20000])
            if left < 0:
                break
    for reading in load_reading_sets(data):
        yield "\n".join(f"{question} {answer}" for question, answer in reading.pairs)


def train(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries; ids 0, 1, 2 are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int = 4096) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[SPECIAL[1]],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--megabytes", type=float, default=36)
    args = parser.parse_args()
    save(train(sample_text(args.data, args.megabytes), args.vocabulary), args.out)
    print(f"tokenizer written to {args.out}")


if __name__ == "__main__":
    main()
