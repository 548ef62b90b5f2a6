"""``nnm ask``: one question or a chat prompt, answered from memory."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.text import Text

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.report import seconds, snippet, visible, write_json
from nnm_core.records import Answer, Chunk, Message, Mode, Policy, Role

if TYPE_CHECKING:
    from nnm_core.engine import NNM


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command()(ask)


def ask(
    question: Annotated[str | None, typer.Argument(help="The question; '-' reads it from stdin.")] = None,
    messages: Annotated[
        Path | None,
        typer.Option("--messages", metavar="FILE", help='A chat prompt: JSON list of {"role", "content"}.'),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="inject states, read the same tokens as text, or answer bare, without memories.")
    ] = "inject",
    policy: Annotated[
        Policy, typer.Option(help="exact: as if read; auto: exact where cached; fast: compose states.")
    ] = "auto",
    k: Annotated[int, typer.Option("-k", min=1, help="How many memories to recall.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer while it is written.")] = False,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    rebuild: shared.RebuildOption = False,
    json: shared.JsonOption = None,
) -> None:
    """Answer a question from memory. The answer goes to stdout, the receipt and the sources to stderr."""
    prompt = _prompt(question, messages)
    session = Session(model, path, namespace, device, rebuild, url=url)
    options: dict[str, Any] = {"k": k, "max_tokens": max_tokens, "mode": mode, "policy": policy}
    with opened(session) as engine:
        quiet = owns_stdout(json)
        answer = _streamed(engine, prompt, options, quiet) if stream else engine.answer(prompt, **options)
    if not stream and not quiet:
        stdout().print(visible(answer.text.strip()), soft_wrap=True)
    write_json(json, {"config": session.config() | options, "prompt": prompt, "answer": answer})
    _show_receipt(answer)


def _prompt(question: str | None, messages: Path | None) -> str | list[Message]:
    if (question is None) == (messages is None):
        raise typer.BadParameter("give either a question or --messages FILE", param_hint="QUESTION")
    if messages is not None:
        return read_messages(messages)
    text = sys.stdin.read() if question == "-" else str(question)
    if not text.strip():
        raise InvalidInputError("The question is empty.", hint="Ask something.")
    return text.strip()


def read_messages(source: Path) -> list[Message]:
    """A chat prompt from a JSON file (``-``: stdin).

    Raises:
        InvalidInputError: the file cannot be read, is not JSON, or is not a list of messages.
    """
    try:
        text = sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")
        value = json_module.loads(text)
    except OSError as error:
        raise InvalidInputError(f"{source}: {error.strerror or error}.", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        message = f"{source}: not UTF-8, byte 0x{error.object[error.start]:02x} at offset {error.start}."
        raise InvalidInputError(message, hint="Convert the file to UTF-8.") from error
    except json_module.JSONDecodeError as error:
        message = f"{source}: not JSON, {error.msg} in line {error.lineno}, column {error.colno}."
        raise InvalidInputError(message, hint='Expected: [{"role": "user", "content": "..."}]') from error
    if not isinstance(value, list) or not value:
        raise InvalidInputError(
            f"{source}: not a list of messages.", hint='Expected: [{"role": "user", "content": "..."}]'
        )
    return [_message(item, f"{source}, message {number}") for number, item in enumerate(value, start=1)]


def _message(value: Any, where: str) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    content = value.get("content") if isinstance(value, dict) else None
    if role not in get_args(Role) or not isinstance(content, str):
        raise InvalidInputError(
            f"{where}: needs a role and a text as content.", hint=f"Roles: {', '.join(get_args(Role))}."
        )
    return Message(cast("Role", role), content)


def _streamed(engine: NNM, prompt: str | Sequence[Message], options: dict[str, Any], quiet: bool) -> Answer:
    answer: Answer | None = None
    for chunk in cast("Iterable[Chunk]", engine.stream(prompt, **options)):
        if not quiet:
            sys.stdout.write(visible(chunk.text))
            sys.stdout.flush()
        answer = chunk.answer or answer
    if not quiet:
        sys.stdout.write("\n")
    if answer is None:
        raise InvalidInputError("The model gave no answer.", hint="Raise --max-tokens.")
    return answer


def _show_receipt(answer: Answer) -> None:
    receipt = answer.receipt
    console = stderr()
    line = (
        f"{receipt.tier} | {receipt.tokens_injected} tokens injected, {receipt.tokens_read} read, "
        f"{receipt.tokens_generated} written | first token after {seconds(receipt.seconds_to_first_token)}, "
        f"all after {seconds(receipt.seconds_total)}"
    )
    console.print(Text(line, style="dim"))
    for hit in answer.hits:
        how = receipt.memories.get(hit.memory.id, "")
        console.print(Text(f"  {visible(hit.memory.id)} ({how}): {snippet(hit.memory.text, 90)}", style="dim"))
    for reason in receipt.fallbacks:
        console.print(Text(f"  read: {snippet(reason, 200)}", style="dim"))
