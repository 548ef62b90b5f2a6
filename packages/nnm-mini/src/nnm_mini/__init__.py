"""The small reading model that comes with Neural Native Memory.

folder = nnm_mini.path()
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from nnm_mini._weights import WeightsError, cache_root, materialise, read_manifest

__version__ = "0.1.0"
__all__ = ["CHECKSUM", "WeightsError", "__version__", "checksum", "path"]

CHECKSUM: str
"""The same as `checksum()`."""

_STORED = Path(__file__).parent / "weights"


def checksum() -> str:
    """SHA-256 over the digests of all stored files: it names these weights exactly."""
    return str(read_manifest(_STORED)["checksum"])


def path() -> Path:
    """A folder that `transformers` loads.

    The weights are stored as int8; the first call expands them to fp32 in the user's cache folder (or in the folder
    that NNM_MINI_CACHE names; in the temporary folder where neither can be written) and verifies them. Later calls
    return the same folder.

    Raises:
        WeightsError: the stored weights are damaged.
    """
    try:
        return materialise(_STORED, cache_root())
    except OSError:
        return materialise(_STORED, Path(tempfile.gettempdir()) / "nnm-mini")


def __getattr__(name: str) -> str:
    """`CHECKSUM` is read when it is asked for: importing touches no file, and works while the weights are being
    made."""
    if name == "CHECKSUM":
        return checksum()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
