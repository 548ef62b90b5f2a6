"""What a collection's dense vectors were made with; stored with it, compared before vectors are mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from nnm_core.embedding.prompts import PromptStyle
from nnm_core.errors import InvalidInputError

Route = Literal["one-pass", "two-pass", "off"]
Pooling = Literal["last+mean", "last", "mean"]
MeanOver = Literal["row", "text"]


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a text becomes a raw dense vector.

    Attributes:
        layers: layers whose attention gets the re-routed slot; None takes `default_layers`.
        bias: logit bias b of that slot (1.0 in the paper).
        route: ``one-pass`` re-routes the last token's key and value of the same layer in the same forward pass, as
            in the paper; ``two-pass`` takes them from a first, untouched pass, as the original project did; ``off``
            leaves the attention alone.
        pooling: ``last+mean`` is the paper's normalize((h_last + mean(h)) / 2); the two others are its halves.
        mean_over: which tokens the mean is taken over: the whole ``row``, instruction included, or its ``text``.
        hidden_layer: the layer whose output is pooled, counted like a Python index over the layers (-1: the last one,
            after the final norm, as in the paper; any other before it).
        prompt: style of the compression prompt.
        window: longest token row; longer texts are split and their vectors averaged. None takes the model's context.
        tokens_per_batch: token rows are batched so that rows x longest row stays below this, and below what suits the
            device (`nnm_core.model.batching`).
    """

    layers: tuple[int, ...] | None = None
    bias: float = 1.0
    route: Route = "one-pass"
    pooling: Pooling = "last+mean"
    mean_over: MeanOver = "row"
    hidden_layer: int = -1
    prompt: PromptStyle = "plain"
    window: int | None = 1024
    tokens_per_batch: int = 4096

    def __post_init__(self) -> None:
        choices = {"route": Route, "pooling": Pooling, "mean_over": MeanOver, "prompt": PromptStyle}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise InvalidInputError(
                    f"EmbeddingSettings.{name} is {getattr(self, name)!r}.", hint=f"Use one of {get_args(allowed)}."
                )
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted({int(layer) for layer in self.layers})))
        if self.tokens_per_batch < 1 or (self.window is not None and self.window < 1):
            raise InvalidInputError("EmbeddingSettings.window and tokens_per_batch must be positive.")

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EmbeddingSettings:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: not a JSON object, or with a key that this version does not know (a newer one may
                give it a meaning that must not be ignored).
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"Embedding settings are no JSON: {error}.") from error
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> EmbeddingSettings:
        """The settings of a mapping with the names of the attributes; those left out take their default.

        Raises:
            InvalidInputError: an unknown name, or no mapping.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError("Embedding settings must be a mapping.")
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise InvalidInputError(
                f"Unknown embedding settings: {sorted(unknown)}.", hint="Was the collection made by a newer version?"
            )
        return cls(**{**values, "layers": tuple(values["layers"]) if values.get("layers") is not None else None})


def default_layers(count: int) -> tuple[int, ...]:
    """Layers to re-route when no profile of the model was made: the middle tenth, at least one.

    The paper takes the window behind the minimum of the intrinsic dimension, which lies near the middle of most
    decoders; `nnm_core.embedding.layers` finds it for a given model.
    """
    size = max(1, count // 10)
    start = max(0, min(count - size, count // 2))
    return tuple(range(start, start + size))
