"""``nnm eval gate NAME``: what the gates' commands share: options, the engine, and how a result is shown."""

from __future__ import annotations

import inspect
import json as json_module
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, replace
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, progress_bar, stderr, stdout
from nnm_core.errors import InvalidInputError, StorageError
from nnm_core.evaluation.report import plain, quiet_libraries, seconds, write_json
from nnm_core.records import text_digest

if TYPE_CHECKING:
    from nnm_core.engine import NNM
    from nnm_core.evaluation.gates.core import Tell
    from nnm_core.evaluation.gates.result import GateResult
    from nnm_core.evaluation.rag import TextRetriever

QuantizeOption = Annotated[
    str | None, typer.Option("--quantize", metavar="KIND", help="4bit or 8bit weights (extra 'quantize', CUDA).")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Ask a repeatable sample of so many unique items.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of samples, random memories and generated texts.")]
ArmsOption = Annotated[
    str | None, typer.Option("--arms", metavar="A,B", help="Only these arms, by name, separated by commas.")
]
ComposerOption = Annotated[
    str | None, typer.Option("--composer", metavar="NAME", help="Of the composed arm; the default one if left out.")
]
WorkOption = Annotated[
    Path | None,
    typer.Option("--work", metavar="FOLDER", help="Keep what was read here, for the next run; else it is thrown away."),
]
ItemsOption = Annotated[
    Path | None, typer.Option("--items", metavar="FILE", help="Write every item of every arm, one JSON object a line.")
]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the result: .png, .svg or .pdf.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, help="Decode so many answers side by side: quicker, and the same answers.")
]
RetrieverOption = Annotated[
    str,
    typer.Option("--retriever", metavar="NAME", help="Of classic RAG: minilm, bm25, or a sentence-transformers name."),
]

group = typer.Typer(
    name="gate",
    help="End-to-end gates: the whole path against reading, with controls. The exit code is 1 if a check fails.",
    no_args_is_help=True,
)


@dataclass(frozen=True, slots=True)
class GateOptions:
    """The options of every gate: which model answers where, and where the result goes; `for_gates` adds them."""

    seed: SeedOption = 0
    arms: ArmsOption = None
    model: shared.ModelOption = shared.DEFAULT_MODEL
    device: shared.DeviceOption = None
    quantize: QuantizeOption = None
    work: WorkOption = None
    json: shared.JsonOption = None
    items: ItemsOption = None
    plot: PlotOption = None

    @property
    def arm_names(self) -> tuple[str, ...] | None:
        """The arms that are named; None for all."""
        return names_of(self.arms)

    def run(
        self,
        namespace: str,
        gate: Callable[[NNM, Tell], GateResult],
        *,
        store: Path | None = None,
        system: str | None = None,
    ) -> None:
        """Open an engine, run the gate, show and write what it says; leave with 1 if a check failed.

        Args:
            namespace: where the gate keeps what it has read.
            gate: is given the engine, and whom to tell of the progress.
            store: a memory that exists (namespace ``default``) and is used in place of one of the gate's own.
            system: the engine's system prompt; None takes the default one.
        """
        from nnm_core.evaluation.benchmark import command, environment

        if self.plot is not None:
            _check_plots()
        started = time.perf_counter()
        with ExitStack() as stack:
            engine = stack.enter_context(self._opened(namespace, store, system))
            with _bar() as tell:
                result = gate(engine, tell)
            config = environment(engine.model) | {"quantize": self.quantize, **result.config}
            config["command"] = command(["nnm", *sys.argv[1:]])
        config["seconds"] = time.perf_counter() - started
        self._write(result, config)
        if not owns_stdout(self.json):
            from nnm_core.evaluation.gates.show import tables

            stdout().print(tables(result))
        stderr().print(f"Done in {seconds(config['seconds'])}.")
        if not result.passed:
            raise typer.Exit(1)

    def _write(self, result: GateResult, config: Mapping[str, Any]) -> None:
        written = result.to_dict()
        write_json(self.json, written | {"config": config})
        if self.items is not None:
            lines = (json_module.dumps(plain(item), ensure_ascii=False) for item in written["items"])
            try:
                self.items.parent.mkdir(parents=True, exist_ok=True)
                self.items.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            except OSError as error:
                raise StorageError(
                    f"Cannot write {self.items}: {error.strerror}.", hint="Name another file with --items."
                ) from error
        if self.plot is not None:
            from nnm_core.evaluation.gates.plots import save

            save(result, self.plot)

    @contextmanager
    def _opened(self, namespace: str, store: Path | None, system: str | None) -> Iterator[NNM]:
        """An engine that keeps no states in RAM, so that no arm lives on what another one has read."""
        quiet_libraries()
        with ExitStack() as stack:
            folder = self.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnm-gate-")))
            with stderr().status(f"Opening {self.model} ..."):
                from nnm_core import NNM
                from nnm_core.model.prompt import DEFAULT_SYSTEM

                own = folder / text_digest(f"{self.model}/{self.quantize}")[:12]
                engine = NNM.open(
                    self.model,
                    store or own,
                    namespace="default" if store else namespace,
                    system=system or DEFAULT_SYSTEM,
                    state_cache=0,
                    rebuild=store is None,
                    device=self.device,
                    quantize=self.quantize,
                )
            stack.callback(engine.close)
            # A gate is about states: what a calibrated machine would rather read to save time is injected here.
            engine.planner = replace(engine.planner, costs=None)
            yield engine


def for_gates(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose first parameter is `GateOptions`, as a command with those options behind its own ones."""

    def made(**given: Any) -> None:
        common = {field.name: given.pop(field.name) for field in fields(GateOptions)}
        command(GateOptions(**common), **given)

    hints = get_type_hints(GateOptions, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    common = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(GateOptions)
    ]
    parameters = [*(parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own), *common]
    made.__name__, made.__doc__ = command.__name__, command.__doc__
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    return made


@contextmanager
def _bar() -> Iterator[Tell]:
    with progress_bar("Starting") as progress:

        def tell(what: str, done: int, total: int) -> None:
            progress.update(progress.task_ids[0], description=what, completed=done, total=total)

        yield tell


def _check_plots() -> None:
    """Say before hours of work, not after them, that a plot cannot be drawn."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInputError("Plots need matplotlib.", hint="pip install 'nnm-core[plot]'")


def namespace_of(gate: str, *parts: object) -> str:
    """A compartment for a gate on certain texts, so that kept stores are found again and never mixed."""
    return f"{gate}-{text_digest(repr(parts))[:16]}"


def names_of(text: str | None) -> tuple[str, ...] | None:
    """A comma-separated option as names; None if it was left out."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    """A comma-separated option as whole numbers above 0.

    Raises:
        InvalidInputError: it is something else.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise InvalidInputError(f"{option} {text}: not whole numbers above 0.", hint=f"For example {option} 2,4,8")
    return numbers


@contextmanager
def retriever_of(name: str) -> Iterator[TextRetriever]:
    """Classic RAG's retriever by name: ``auto``, ``bm25``, ``minilm``, or a sentence-transformers name or folder.

    Raises:
        InvalidInputError: there is no such embedder, or it is not installed.
    """
    from nnm_core.evaluation.embedders import EmbeddingRetriever
    from nnm_core.evaluation.rag import BM25Retriever, default_retriever

    quiet_libraries()
    makers: dict[str, Callable[[], TextRetriever]] = {"auto": default_retriever, "bm25": BM25Retriever}
    found = makers[name]() if name in makers else EmbeddingRetriever(name)
    with closing(found):
        yield found
