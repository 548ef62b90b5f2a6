from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.errors import InvalidInputError


def anisotropic(count: int, dim: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """Vectors in a narrow cone: a large common part and very unequal directions, as a decoder makes them."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, dim)) * np.geomspace(5, 0.05, dim)
    raw = generator.normal(size=(count, dim)) @ mixing + 8 * generator.normal(size=dim)
    return raw.astype(np.float32)


def statistics(raw: NDArray[np.float32]) -> SufficientStatistics:
    made = SufficientStatistics(raw.shape[1])
    made.add(raw)
    return made


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_without_shrinkage_documents_become_uncorrelated_with_unit_variance(method: str) -> None:
    raw = anisotropic(5000)
    whitening = Whitening.fit(statistics(raw), method, shrinkage=0.0)  # type: ignore[arg-type]
    moved = (raw - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.eye(12), atol=2e-3)
    np.testing.assert_allclose(moved.mean(0), 0, atol=1e-3)


def test_zscore_scales_axes_only() -> None:
    raw = anisotropic(1000)
    whitening = Whitening.fit(statistics(raw), "zscore")
    moved = (raw - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(
        whitening.transform(raw), moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-4
    )


def test_pca_and_zca_give_the_same_cosines() -> None:
    raw = anisotropic(400)
    zca, pca = (Whitening.fit(statistics(raw), m).transform(raw[:9]) for m in ("zca", "pca"))  # type: ignore[arg-type]
    np.testing.assert_allclose(zca @ zca.T, pca @ pca.T, atol=1e-4)


def test_a_dimension_cut_keeps_the_largest_components() -> None:
    raw = anisotropic(4000)
    full = Whitening.fit(statistics(raw), "pca", shrinkage=0.0)
    cut = Whitening.fit(statistics(raw), "pca", shrinkage=0.0, dims=3)
    assert cut.dim == 3
    np.testing.assert_allclose(np.abs(cut.matrix), np.abs(full.matrix[:, :3]), rtol=1e-5)
    # Large components of the correlation are scaled down most: their columns are the shortest.
    lengths = np.linalg.norm(full.matrix * raw.std(0)[:, None], axis=0)
    assert (np.diff(lengths) > 0).all()


def test_statistics_of_parts_are_those_of_the_whole_and_forgetting_undoes_adding() -> None:
    raw = anisotropic(300)
    whole, parts = statistics(raw), statistics(raw[:100])
    parts.add(raw[100:])
    parts.add(raw[:7])
    parts.remove(raw[:7])
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.total, whole.total, rtol=1e-9)
    np.testing.assert_allclose(parts.outer, whole.outer, rtol=1e-9)


def test_few_documents_are_shrunk_towards_the_identity_and_very_few_left_alone() -> None:
    raw = anisotropic(20, dim=40)
    whitening = Whitening.fit(statistics(raw))
    assert np.isfinite(whitening.matrix).all()
    scaled = np.diag(whitening.matrix) * raw.std(0)
    assert 0.5 < scaled.mean() < 1.5
    assert Whitening.fit(statistics(raw[:15])).method == "none"


def test_the_identity_only_normalises() -> None:
    raw = anisotropic(3)
    moved = Whitening.identity(12).transform(raw)
    np.testing.assert_allclose(moved, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)


def test_constant_axes_and_the_mean_itself_do_no_harm() -> None:
    raw = anisotropic(200)
    raw[:, 3] = 1.0
    whitening = Whitening.fit(statistics(raw))
    moved = whitening.transform(np.concatenate([raw, whitening.mean[None]]))
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(np.linalg.norm(moved[:-1], axis=1), 1, atol=1e-5)


def test_arrays_bring_everything_back() -> None:
    raw = anisotropic(100)
    known = statistics(raw)
    whitening = Whitening.fit(known, "pca", dims=5, version=7)
    again = Whitening.from_arrays(whitening.to_arrays())
    assert (again.version, again.fitted_on, again.method, again.dim) == (7, 100, "pca", 5)
    np.testing.assert_array_equal(again.transform(raw), whitening.transform(raw))
    np.testing.assert_array_equal(SufficientStatistics.from_arrays(known.to_arrays()).outer, known.outer)


@pytest.mark.parametrize("missing", ["mean", "matrix", "note"])
def test_damaged_arrays_are_refused(missing: str) -> None:
    arrays = Whitening.identity(3).to_arrays()
    del arrays[missing]
    with pytest.raises(InvalidInputError, match="incomplete"):
        Whitening.from_arrays(arrays)


def test_bad_vectors_are_refused_and_change_nothing() -> None:
    known = statistics(anisotropic(5))
    before = known.outer.copy()
    for bad in (np.full((2, 12), np.nan, np.float32), np.zeros((2, 11), np.float32), np.zeros(12, np.float32)):
        with pytest.raises(InvalidInputError, match="Raw vectors"):
            known.add(bad)
    np.testing.assert_array_equal(known.outer, before)
    with pytest.raises(InvalidInputError, match="shape"):
        Whitening.identity(12).transform(np.zeros((2, 11), np.float32))
