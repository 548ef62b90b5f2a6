"""What most commands share: the options, and the engine that they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnm_core.cli.output import stderr
from nnm_core.errors import StorageError
from nnm_core.evaluation.report import quiet_libraries

if TYPE_CHECKING:
    from nnm_core.engine import NNM

ModelOption = Annotated[
    str, typer.Option("--model", "-m", envvar="NNM_MODEL", help="Hugging Face name, local folder, or nnm-mini.")
]
PathOption = Annotated[Path, typer.Option("--path", "-p", envvar="NNM_PATH", help="The folder of the memory.")]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", envvar="NNM_NAMESPACE", help="The compartment; nothing crosses it.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", envvar="NNM_DEVICE", help="cpu, cuda, mps; chosen for you if left out.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="NNM_URL", help="A Qdrant server for the vectors; its key is taken from QDRANT_API_KEY."
    ),
]
RebuildOption = Annotated[
    bool, typer.Option("--rebuild", help="Read all texts again if another model made the memory.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' writes it to stdout alone.")
]

DEFAULT_MODEL = "nnm-mini"
DEFAULT_PATH = Path("memory")
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Session:
    """Where the memory is and which model reads it."""

    model: str = DEFAULT_MODEL
    path: Path = DEFAULT_PATH
    namespace: str = DEFAULT_NAMESPACE
    device: str | None = None
    rebuild: bool = False
    codec: str | None = None
    url: str | None = None

    def config(self) -> dict[str, str | None]:
        """The settings as they appear under ``config`` in JSON files."""
        return {
            "model": self.model,
            "path": str(self.path),
            "namespace": self.namespace,
            "device": self.device,
            "url": self.url,
        }


@contextmanager
def opened(session: Session, *, create: bool = False) -> Iterator[NNM]:
    """Open the engine for the block and close it afterwards.

    Args:
        session: where and with what.
        create: whether a store that does not exist may be made; otherwise that is an error.

    Raises:
        StorageError: there is no store at this path and `create` is false.
    """
    if not create and not session.path.is_dir():
        raise StorageError(
            f"There is no memory at {session.path}.",
            hint="Add something first ('nnm add FILES'), or name the folder with --path.",
        )
    quiet_libraries()
    with stderr().status(f"Opening {session.model} ..."):
        from nnm_core import NNM

        engine = NNM.open(
            session.model,
            path=session.path,
            namespace=session.namespace,
            device=session.device,
            rebuild=session.rebuild,
            codec=session.codec,
            url=session.url,
        )
    try:
        yield engine
    finally:
        engine.close()
