"""Whitening: what turns a decoder's anisotropic states into vectors whose cosine means something.

z = (x - mean) / std;   C = (1 - s) corr + s I;   y = normalize(C^(-1/2) z)

fitted on documents only. All that it needs of them are the sufficient statistics n, sum x and sum x x^T, which are
added to as documents arrive, taken from when they are forgotten, and saved: a refit never reads a document again. With
few documents the correlation matrix is mostly noise; the shrinkage s = dim / (dim + n) grows towards the identity then,
and below `minimum` documents the vectors are only centred on nothing and normalised (the identity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]
WhiteningMethod = Literal["zca", "pca", "zscore", "none"]


@dataclass
class SufficientStatistics:
    """Count, sum and sum of outer products of raw vectors, in float64. Mutable: one object a collection.

    Attributes:
        dim: length of the vectors.
        count: how many were added.
        total: their sum, [dim].
        outer: the sum of their outer products, [dim, dim].
    """

    dim: int
    count: int = 0
    total: Array64 = field(default_factory=lambda: np.zeros(0))
    outer: Array64 = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if self.total.size == 0:
            self.total = np.zeros(self.dim)
            self.outer = np.zeros((self.dim, self.dim))
        if self.total.shape != (self.dim,) or self.outer.shape != (self.dim, self.dim):
            raise InvalidInputError(f"Whitening statistics do not have dimension {self.dim}.")

    def add(self, raw: Array) -> None:
        """Take in raw vectors, [n, dim]."""
        self._move(raw, 1)

    def remove(self, raw: Array) -> None:
        """Take raw vectors out again, [n, dim]: a forgotten document leaves no trace here either (to rounding)."""
        self._move(raw, -1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for safetensors or npz; `from_arrays` reads them back exactly."""
        return {"count": np.array([self.count], dtype=np.int64), "total": self.total, "outer": self.outer}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> SufficientStatistics:
        """Read what `to_arrays` gave.

        Raises:
            InvalidInputError: an array is missing or has the wrong shape.
        """
        try:
            total, outer, count = arrays["total"], arrays["outer"], int(arrays["count"][0])
        except (KeyError, IndexError) as error:
            raise InvalidInputError(f"Whitening statistics are incomplete: {error}.") from error
        return cls(len(total), count, total.astype(np.float64), outer.astype(np.float64))

    def _move(self, raw: Array, sign: int) -> None:
        vectors = np.asarray(raw, dtype=np.float64)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or not np.isfinite(vectors).all():
            raise InvalidInputError(f"Raw vectors must be finite and of shape [n, {self.dim}], not {vectors.shape}.")
        self.count += sign * len(vectors)
        self.total += sign * vectors.sum(axis=0)
        self.outer += sign * (vectors.T @ vectors)


@dataclass(frozen=True)
class Whitening:
    """A fitted transform: y = normalize((x - mean) @ matrix).

    Attributes:
        mean: [dim].
        matrix: [dim, out].
        fitted_on: number of documents; 0 for the identity.
        method: how it was fitted.
        version: counted up by the collection at each refit, so that vectors of different fits are never compared.
    """

    mean: Array
    matrix: Array
    fitted_on: int
    method: WhiteningMethod
    version: int = 0

    @property
    def dim(self) -> int:
        """Length of the transformed vectors."""
        return int(self.matrix.shape[1])

    @classmethod
    def identity(cls, dim: int, *, version: int = 0) -> Whitening:
        """Only normalises."""
        return cls(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32), 0, "none", version)

    @classmethod
    def fit(
        cls,
        statistics: SufficientStatistics,
        method: WhiteningMethod = "zca",
        *,
        shrinkage: float | None = None,
        power: float = 0.5,
        dims: int | None = None,
        minimum: int = 16,
        version: int = 0,
    ) -> Whitening:
        """Fit on the statistics of documents.

        Args:
            statistics: of the raw vectors of documents, never of queries.
            method: ``zca`` keeps the axes, ``pca`` rotates to the principal ones (the cosines are the same without a
                dimension cut), ``zscore`` only centres and scales each axis, ``none`` is the identity.
            shrinkage: s above, in [0, 1]; None takes dim / (dim + n).
            power: exponent of the whitening, C^(-power): 0.5 whitens fully, less keeps some of the spectrum.
            dims: keep the largest principal components (``pca`` only).
            minimum: with fewer documents the identity is returned.
            version: to be stored with it.

        Raises:
            InvalidInputError: a dimension cut without ``pca``, or parameters out of range.
        """
        if dims is not None and (method != "pca" or not 1 <= dims <= statistics.dim):
            raise InvalidInputError(f"A cut to {dims} dimensions needs pca and 1 to {statistics.dim}.")
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise InvalidInputError("Shrinkage lies between 0 and 1.")
        if method == "none" or statistics.count < max(minimum, 2):
            return cls.identity(statistics.dim, version=version)
        n = statistics.count
        mean = statistics.total / n
        covariance = statistics.outer / n - np.outer(mean, mean)
        variance = np.diag(covariance).clip(min=0)
        # An axis without variance says nothing; a floor keeps it from being blown up.
        deviation = np.sqrt(np.maximum(variance, max(1e-12, 1e-6 * float(variance.mean()))))
        scale = 1 / deviation
        matrix = np.diag(scale)
        if method in ("zca", "pca"):
            share = statistics.dim / (statistics.dim + n) if shrinkage is None else shrinkage
            matrix = matrix @ _root(covariance * np.outer(scale, scale), share, power, method, dims)
        return cls(mean.astype(np.float32), matrix.astype(np.float32), n, method, version)

    def transform(self, raw: Array) -> Array:
        """float32 unit vectors [n, out] of raw vectors [n, dim]; a raw vector equal to the mean stays all zeros.

        Raises:
            InvalidInputError: wrong shape.
        """
        vectors = np.asarray(raw, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise InvalidInputError(f"Expected raw vectors of shape [n, {len(self.mean)}], not {vectors.shape}.")
        moved = (vectors - self.mean) @ self.matrix
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        return cast(Array, (moved / np.maximum(length, 1e-12)).astype(np.float32))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for safetensors or npz."""
        note = np.array([self.fitted_on, METHODS.index(self.method), self.version], dtype=np.int64)
        return {"mean": self.mean, "matrix": self.matrix, "note": note}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Whitening:
        """Read what `to_arrays` gave.

        Raises:
            InvalidInputError: an array is missing or has the wrong shape.
        """
        try:
            mean, matrix = arrays["mean"], arrays["matrix"]
            fitted_on, method, version = (int(value) for value in arrays["note"])
        except (KeyError, ValueError) as error:
            raise InvalidInputError(f"The whitening is incomplete: {error}.") from error
        if matrix.ndim != 2 or matrix.shape[0] != len(mean) or not 0 <= method < len(METHODS):
            raise InvalidInputError("The whitening's arrays do not fit each other.")
        return cls(mean.astype(np.float32), matrix.astype(np.float32), fitted_on, METHODS[method], version)


METHODS: tuple[WhiteningMethod, ...] = ("zca", "pca", "zscore", "none")


def _root(correlation: Array64, shrinkage: float, power: float, method: str, dims: int | None) -> Array64:
    """((1 - s) C + s I)^(-power): symmetric for zca, on the principal axes (largest first) for pca."""
    values, axes = np.linalg.eigh((correlation + correlation.T) / 2)
    shrunk = (1 - shrinkage) * values.clip(min=0) + shrinkage
    shrunk = np.maximum(shrunk, 1e-5 * float(shrunk.max()))
    scaled = axes * shrunk**-power
    root: Array64 = scaled @ axes.T if method == "zca" else scaled[:, ::-1][:, :dims]
    return root
