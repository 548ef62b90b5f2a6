"""How well are the right memories found? The same as `nnm eval retrieval`, for a checkout that is not installed.

    python benchmarks/retrieval.py path/to/scifact --subset 50x250 --json retrieval.json

Needs the extra `bench`.
"""

from __future__ import annotations

import sys

from nnm_core.cli import main

if __name__ == "__main__":
    main(["eval", "retrieval", *(argument for argument in sys.argv[1:] if argument != "--data")])
