"""Small tokenizers and chat templates with the manners of well-known ones."""

from __future__ import annotations

from tests.core.families import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# Llama 3: BOS is written by the template, today's date by a variable.
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# SmolLM3, GPT-OSS, Granite: the date comes from a function and cannot be given.
CLOCK = "{{ 'Today is ' + strftime_now('%d %B %Y %H:%M:%S.%f') + '\n' }}" + LLAMA3.split("+ date_string + '\n\n' }}")[1]
# Gemma: no system turn, roles must alternate.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Qwen3: thinking is on unless it is switched off, which closes the thought at once.
QWEN3 = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# Mistral: the system text stands before the last question, behind the history.
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.last and system else '')"
    " + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
# One that keeps only the last turn.
FORGETFUL = "{{ '<|im_start|>user\n' + messages[-1]['content'] + '<|im_end|>\n' }}"
# One that writes the first turn twice.
REPEATING = "{{ messages[0]['content'] }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
# One that accepts nothing.
REFUSING = "{{ raise_exception('not today') }}"
BROKEN = "{% for m in messages %}{{ m['content'] "


def llama_tokenizer(template: str | None = LLAMA3) -> PreTrainedTokenizerFast:
    """Bytes, and a BOS in front of every text that is not told otherwise."""
    tokenizer = byte_tokenizer(template)
    backend = tokenizer.backend_tokenizer
    bos, index = tokenizer.bos_token, tokenizer.bos_token_id
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, index)]
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
    )
    return tokenizer


def sentencepiece_tokenizer(template: str | None = MISTRAL) -> PreTrainedTokenizerFast:
    """Llama 2's manner: a blank is put in front of every text, blanks are "▁", unknown characters become bytes."""
    special = ["<unk>", "<s>", "</s>"]
    words = ["▁the", "▁bins", "▁are", "▁red", "▁"]
    letters = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!'[]/()-"})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for word in words[:-1]:
        piece = word[0]
        for letter in word[1:]:
            merges.append((piece, letter))
            piece += letter
            vocabulary.setdefault(piece, len(vocabulary))
    merges = list(dict.fromkeys(merges))
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Without any special token."""
    backend = Tokenizer(models.WordLevel({"[?]": 0, "bins": 1, "red": 2}, unk_token="[?]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
