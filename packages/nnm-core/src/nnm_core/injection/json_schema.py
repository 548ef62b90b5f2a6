"""Answers that are JSON of a given schema, on any model: tokens that would break it are not to be had.

The grammar is llguidance's (pip install 'nnm-core[structured]'). What it leaves open is the end: a small model may go
on writing in a string until its tokens are used up. So the shortest way to a complete answer is known at each step,
and taken when there would not be enough tokens left for it. (Where none is found, as for some patterns, an answer may
still be cut off: its finish reason is then ``length``.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from nnm_core.model.load import LoadedModel

_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,  # alternatives are enough: that exactly one fits cannot be followed token by token
}
_INSTALL = "pip install 'nnm-core[structured]' (LangChain: 'langchain-nnm[structured]')."
# Keywords whose values are no schemas, and those whose values are schemas by name.
_LITERAL = frozenset({"const", "enum", "default", "examples", "required"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_CLOSERS = frozenset('"]}')
_VALUES = ("0", "1", "null", "true", "false")


@dataclass(frozen=True, init=False)
class JsonSchema:
    """Answers that fit a JSON schema.

    Objects get no other properties than those that are named, unless the schema says otherwise.

    Attributes:
        source: the schema as text.

    Raises:
        InvalidInputError: the schema is not JSON-like.
    """

    source: str

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            source = json.dumps(_closed(dict(schema)))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"The schema is not JSON-like: {error}.") from error
        object.__setattr__(self, "source", source)

    def guide(self, model: LoadedModel, max_tokens: int) -> JsonGuide:
        """See `Grammar`."""
        vocabulary = _vocabulary(model.tokenizer, tuple(sorted(model.eos_token_ids)))
        guide = JsonGuide(vocabulary.matcher(self.source), vocabulary)
        if guide.way_out is not None and len(guide.way_out) > max_tokens:
            raise InvalidInputError(
                f"max_tokens is {max_tokens}, but an answer of this schema needs at least {len(guide.way_out)}.",
                hint="Allow more tokens, or require fewer and shorter values.",
            )
        return guide


class JsonGuide:
    """`Guide` along a grammar; see `JsonSchema`."""

    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        # The tokens of a short, if dull, end of the answer from here, or None if none was found.
        self.way_out = vocabulary.way_out(matcher)

    @property
    def finished(self) -> bool:
        """See `Guide`."""
        return self._matcher.is_stopped()

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """See `Guide`."""
        mask = np.zeros(size, dtype=np.bool_)
        known = self._vocabulary.allowed(self._matcher)[:size]
        mask[: len(known)] = known
        return mask

    def accept(self, token: int, left: int) -> int:
        """See `Guide`."""
        after = self._matcher.deep_copy()
        way_out = self._vocabulary.way_out(after) if after.consume_token(token) else None
        if self.way_out is not None and (way_out is None or len(way_out) > left):
            # An answer that is complete already, such as 61 before an e, ends here.
            token, *way_out = self.way_out or [self._vocabulary.tokenizer.eos_token]
            after = self._matcher.deep_copy()
            after.consume_token(token)
        self._matcher, self.way_out = after, way_out
        return token


class _Vocabulary:
    """The tokens of one tokenizer, and which of them finish JSON soonest."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        texts = [tokenizer.decode_str([index]) for index in range(tokenizer.vocab_size)]
        ranks = [_rank(text) for text in texts]
        self._structure_first = np.array(sorted(range(len(texts)), key=lambda i: (*ranks[i], texts[i][:1] == '"')))
        self._quotes_first = np.array(sorted(range(len(texts)), key=lambda i: (texts[i][:1] != '"', *ranks[i])))
        self._closing = frozenset(index for index, rank in enumerate(ranks) if rank[0] == 0)
        self._letter = texts.index("a") if "a" in texts else None

    def matcher(self, schema: str) -> LLMatcher:
        """A new matcher for a schema.

        Raises:
            InvalidInputError: the schema cannot be understood.
        """
        from llguidance import LLMatcher

        made = LLMatcher(self.tokenizer, LLMatcher.grammar_from_json_schema(schema, defaults=_OPTIONS), log_level=0)
        if made.is_error():
            raise InvalidInputError(
                f"The schema cannot be followed: {made.get_error()}", hint="Leave out what is named there."
            )
        return made

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocabulary]."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self.tokenizer.vocab_size].astype(np.bool_)

    def way_out(self, matcher: LLMatcher, limit: int = 512) -> list[int] | None:
        """Tokens that complete the answer from here on, few if not the fewest; None if none are found in `limit`."""
        ahead = matcher.deep_copy()
        way: list[int] = []
        while len(way) <= limit:
            if ahead.is_accepting() or ahead.is_stopped():
                return None if ahead.is_error() else way
            steps = ahead.compute_ff_tokens() or [self._soonest(self.allowed(ahead), way)]
            if not ahead.consume_tokens(steps):
                return None
            way += steps
        return None

    def _soonest(self, allowed: NDArray[np.bool_], used: list[int]) -> int:
        # Within a string a bracket is a letter like any other: only the quotation mark leads out.
        inside = self._letter is not None and allowed[self._letter]
        order = self._quotes_first if inside else self._structure_first
        first = int(order[int(np.argmax(allowed[order]))])
        if first in used and first not in self._closing:
            fresh = allowed.copy()  # a pattern such as a+b is not left by repeating a
            fresh[used] = False
            return int(order[int(np.argmax(fresh[order]))]) if fresh.any() else first
        return first


def _rank(text: str) -> tuple[int, int]:
    """Closing marks first, the more at once the better; then what ends a number; then short values; then the rest."""
    if text and _CLOSERS.issuperset(text):
        return 0, -len(text)
    if text[:1] == ",":
        return 1, len(text)
    if text in _VALUES:
        return 2, len(text)
    return 3, len(text) or 99


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, eos: tuple[int, ...]) -> _Vocabulary:
    try:
        from llguidance.hf import from_tokenizer
    except ImportError as error:
        raise InvalidInputError("Answers of a given form need the package llguidance.", hint=_INSTALL) from error
    try:
        return _Vocabulary(from_tokenizer(tokenizer, eos_token=list(eos)))
    except ValueError as error:
        raise InvalidInputError(
            f"The tokenizer of this model cannot be guided: {error}.", hint="Use a model with a fast tokenizer."
        ) from error


def _closed(schema: Any) -> Any:
    """The schema with objects closed that name their properties and do not say whether there may be others."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: part if name in _LITERAL else _closed(part) for name, part in schema.items() if name not in _NAMED}
    for name in _NAMED & schema.keys():
        named = schema[name]
        made[name] = {key: _closed(part) for key, part in named.items()} if isinstance(named, dict) else named
    if isinstance(made.get("properties"), dict) and made.get("type", "object") == "object":
        made.setdefault("additionalProperties", False)
    return made
