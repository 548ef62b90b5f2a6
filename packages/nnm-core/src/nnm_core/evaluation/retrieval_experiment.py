"""One retrieval experiment: every part of recall alone and together, beside the baselines, on the same queries.

What has to be chosen (re-routed layers, token layer, weights, heads) is chosen on sentences of the documents
themselves, before a query of the set is looked at. No judgement is used but for the final figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from nnm_core.embedding.layers import LayerProfile, profile_layers
from nnm_core.embedding.pairs import SelfLabel, self_labels
from nnm_core.embedding.settings import EmbeddingSettings, Route, default_layers
from nnm_core.embedding.token_vectors import TokenEncoder, TokenScale, TokenSettings, choose_token_layer, max_sim
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation import baselines
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.evaluation.retrieval import (
    EncodedSet,
    Rankings,
    StateSide,
    first_stage_trials,
    fused,
    reranked,
)
from nnm_core.model.load import LoadedModel
from nnm_core.recall.exact import DenseSide, SparseSide, eight_bits
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import RerankSettings, StateReranker
from nnm_core.recall.tuning import best_heads, head_name, head_scores, tune_first_stage, tune_rerank
from nnm_core.states.capture import place  # noqa: F401  # placeholder removed below
