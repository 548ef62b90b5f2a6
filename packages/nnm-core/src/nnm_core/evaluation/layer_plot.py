"""The layers of a model as a picture: intrinsic dimension, and what re-routing brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnm_core.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from nnm_core.embedding.layers import LayerProfile


def plot_layers(profile: LayerProfile, target: Path) -> None:
    """Save the profile as an image; the ending of `target` says which kind.

    Raises:
        InvalidInputError: matplotlib is not installed, or does not know the ending.
        StorageError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Plots need matplotlib.", hint='pip install "nnm-core[plot]"') from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    layers = [row.layer for row in profile.rows]
    left.plot(layers, [row.last_token for row in profile.rows], "o-", label="dimension, last token")
    left.plot(layers, [row.all_tokens for row in profile.rows], "s--", color="0.6", label="dimension, all tokens")
    left.set(xlabel="layer", ylabel="TwoNN intrinsic dimension", xticks=layers)
    for chosen, label, colour in ((profile.by_rule, "the paper's rule", "C1"), (profile.chosen, "chosen", "C2")):
        for number, layer in enumerate(chosen):
            left.axvspan(layer - 0.4, layer + 0.4, alpha=0.2, color=colour, label=None if number else label)
    tried = {row.layer: row.self_retrieval for row in profile.rows if row.self_retrieval is not None}
    if tried:
        right = left.twinx()
        right.plot(list(tried), list(tried.values()), "^:", color="C3")
        right.set_ylabel("own sentences found (MRR)", color="C3")
        if profile.baseline is not None:
            right.axhline(profile.baseline, color="C3", linewidth=0.8)
    left.legend(loc="upper center")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
    except ValueError as error:
        raise InvalidInputError(f"Cannot draw {target}: {error}.", hint="End the name in .png or .svg.") from error
    except OSError as error:
        raise StorageError(
            f"Cannot write {target}: {error.strerror}.", hint="Name another file with --plot."
        ) from error
