"""Which layers to re-route: the paper's rule (intrinsic dimension) and a choice on the collection's own sentences.

TwoNN (Facco et al. 2017): with r1, r2 the distances of a point to its two nearest neighbours, mu = r2 / r1 follows
P(mu) = d mu^-(d+1), so d = n / sum ln mu. KV-Embedding (arXiv 2601.01046) takes the dimension of the last-token states
of the prompted texts, leaves out the first fifth of the layers and re-routes a tenth of them from the minimum on. The
dimension over all tokens, which the original project used by mistake, is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnm_core.embedding.kv_embedding import EncoderModel, KVEmbedder, batches
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.errors import InvalidInputError

_TOKENS_KEPT = 2000


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What was measured at one layer.

    Attributes:
        layer: counted from 0.
        last_token: TwoNN dimension of the last-token states behind this layer.
        all_tokens: the same over a sample of all tokens' states.
        self_retrieval: mean reciprocal rank of own sentences when the window from this layer on is re-routed; None
            where it was not tried.
    """

    layer: int
    last_token: float
    all_tokens: float
    self_retrieval: float | None = None


@dataclass(frozen=True)
class LayerProfile:
    """The layers of one model as this collection's texts see them, and what was chosen.

    Attributes:
        rows: one a layer.
        u_shaped: whether the last-token dimension has its minimum inside, as the paper's rule expects.
        by_rule: the paper's window.
        chosen: layers to re-route; empty when re-routing did not help on the collection's own sentences.
        baseline: mean reciprocal rank of own sentences without re-routing; None when the sweep was not made.
        reason: one sentence.
    """

    rows: tuple[LayerRow, ...]
    u_shaped: bool
    by_rule: tuple[int, ...]
    chosen: tuple[int, ...]
    baseline: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values for the command line and for storing with the collection."""
        return asdict(self)

    def settings(self, base: EmbeddingSettings) -> EmbeddingSettings:
        """`base` with the chosen layers; route ``off`` when none was chosen."""
        return replace(base, layers=self.chosen) if self.chosen else replace(base, layers=None, route="off")


def two_nn(points: NDArray[np.float32] | Tensor, *, discard: float = 0.1) -> float:
    """TwoNN intrinsic dimension of a cloud [n, dim]; not-a-number when fewer than three distinct points are left.

    Args:
        points: duplicates are dropped, they have no nearest-neighbour ratio.
        discard: the share of largest ratios that is left out, as noise of sparse regions.
    """
    cloud = torch.as_tensor(points).float().unique(dim=0)
    if len(cloud) < 3:
        return float("nan")
    # The quick way through |a|^2 + |b|^2 - 2ab loses the small distances that this is all about.
    exact = "donot_use_mm_for_euclid_dist"
    found = [torch.cdist(part, cloud, compute_mode=exact).topk(3, largest=False).values for part in cloud.split(512)]
    near = torch.cat(found)[:, 1:]
    ratios = (near[:, 1] / near[:, 0].clamp_min(1e-12)).clamp_min(1.0).double().sort().values
    kept = ratios[: max(2, int(len(ratios) * (1 - discard)))].log()
    # Least squares through the origin of -ln(1 - F(mu)) = d ln mu, with F the empirical distribution.
    heights = -torch.log1p(-torch.arange(1, len(kept) + 1).double() / (len(ratios) + 1))
    spread = float((kept * kept).sum())
    return float((kept * heights).sum()) / spread if spread > 0 else float("nan")


def window_rule(dimensions: Sequence[float]) -> tuple[int, ...]:
    """The paper's window: without the first fifth, a tenth of the layers (at least one) from the minimum on.

    Raises:
        InvalidInputError: no layer has a dimension.
    """
    count = len(dimensions)
    first = int(0.2 * count)
    values = np.array(dimensions[first:], dtype=np.float64)
    if not len(values) or np.isnan(values).all():
        raise InvalidInputError("No intrinsic dimension could be measured.", hint="Give more, and different, texts.")
    lowest = first + int(np.nanargmin(values))
    return tuple(range(lowest, min(count, lowest + max(1, int(0.1 * count)))))


def is_u_shaped(dimensions: Sequence[float], *, margin: float = 1.1) -> bool:
    """Whether both ends lie above an inner minimum by the factor `margin`."""
    values = np.array(dimensions, dtype=np.float64)
    if len(values) < 3 or np.isnan(values).any():
        return False
    lowest = int(values.argmin())
    return 0 < lowest < len(values) - 1 and bool(min(values[0], values[-1]) >= margin * values[lowest])


def profile_layers(
    model: EncoderModel,
    texts: Sequence[str],
    labels: Sequence[SelfLabel] = (),
    *,
    settings: EmbeddingSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> LayerProfile:
    """Measure every layer and choose those to re-route.

    Args:
        model: the loaded model.
        texts: a sample of documents; some hundreds are enough.
        labels: pseudo-queries of `texts`; without them the paper's rule decides.
        settings: everything but the layers.
        progress: told what is being measured.

    Raises:
        InvalidInputError: too few texts to measure anything.
    """
    base = settings or EmbeddingSettings()
    tell = progress or (lambda _: None)
    tell("intrinsic dimension")
    last, tokens = _dimensions(KVEmbedder(model, replace(base, route="off")), texts)
    rule = window_rule(last)
    tried: dict[int, float] = {}
    baseline: float | None = None
    chosen, reason = rule, "the paper's window behind the minimum of the last-token dimension"
    if labels:
        baseline, spread = _self_retrieval(KVEmbedder(model, replace(base, route="off")), labels)
        for layer in range(int(0.2 * len(last)), len(last)):
            tell(f"re-routing from layer {layer}")
            window = tuple(range(layer, min(len(last), layer + len(rule))))
            tried[layer], _ = _self_retrieval(KVEmbedder(model, replace(base, layers=window)), labels)
        best = max(tried, key=lambda layer: tried[layer])
        if tried[best] > baseline + spread:
            chosen = tuple(range(best, min(len(last), best + len(rule))))
            reason = f"own sentences are found best there ({tried[best]:.3f}, {baseline:.3f} without re-routing)"
        else:
            chosen, reason = (), f"no layer finds own sentences better than no re-routing ({baseline:.3f})"
    rows = tuple(LayerRow(i, last[i], tokens[i], tried.get(i)) for i in range(len(last)))
    return LayerProfile(rows, is_u_shaped(last), rule, chosen, baseline, reason)


def _dimensions(embedder: KVEmbedder, texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """TwoNN dimensions behind each layer: of the last-token states, and of a sample of all tokens' states."""
    windows = embedder.prompt.windows(texts, "context", window=embedder.window)
    last: list[list[Tensor]] = []
    sample: list[list[Tensor]] = []
    share = max(1, _TOKENS_KEPT // max(len(windows), 1))
    generator = torch.Generator().manual_seed(0)
    for batch in batches(windows, embedder.settings.tokens_per_batch):
        states = embedder.hidden_states(batch)[1:]
        last = last or [[] for _ in states]
        sample = sample or [[] for _ in states]
        for row, window in enumerate(batch):
            count = len(window.ids)
            some = torch.randperm(count, generator=generator)[:share]
            for layer, state in enumerate(states):
                last[layer].append(state[row, count - 1].float().cpu())
                sample[layer].append(state[row, some.to(state.device)].float().cpu())
    if len(windows) < 3:
        raise InvalidInputError("At least three texts are needed to measure the layers.")
    return [two_nn(torch.stack(part)) for part in last], [two_nn(torch.cat(part)) for part in sample]


def _self_retrieval(embedder: KVEmbedder, labels: Sequence[SelfLabel]) -> tuple[float, float]:
    """Mean reciprocal rank of each sentence's own rest among all rests, whitened, and its standard error."""
    raw = embedder.encode([label.rest for label in labels], "context")
    statistics = SufficientStatistics(embedder.dim)
    statistics.add(raw)
    whitening = Whitening.fit(statistics)
    documents = whitening.transform(raw)
    queries = whitening.transform(embedder.encode([label.query for label in labels], "query"))
    scores = queries @ documents.T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1) + 1
    found = 1.0 / ranks
    return float(found.mean()), float(found.std() / np.sqrt(len(found)))
