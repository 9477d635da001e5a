"""`longshort describe`: what a model file promises, as a person would want to read it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from longshort_service.commands.group import Mistake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshort_service.signature import Channel, Signature

MODEL_FILE: Final = "model.onnx"
EXPLAIN_FILE: Final = "explain.onnx"
STEPS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
MISSING: Final = {
    "REJECT": "refused",
    "REPEAT_LAST": "the session's last value is put in its place; the first must be there",
    "PASS": "handed to the model, which knows what to do with it",
}


@click.command(short_help="Say what a model file promises.")
@click.argument("path", metavar="PATH|NAME", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the signature as the file carries it.")
def describe(path: Path, *, as_json: bool) -> None:
    """Say what the model at PATH takes, gives, remembers, and how well it did.

    PATH is a model file, the folder of a version, or that of a model (its highest version); where there is no
    such folder, NAME is a model that ships. Read with onnxruntime alone, and checked as the service checks it.

    \b
    Examples:
      longshort describe metro
      longshort describe models/metro
      longshort describe models/metro/1 --json
    """  # noqa: D301  click reads the backspace
    file = find_model_file(path)
    from longshort_service.engine import Engine  # noqa: PLC0415  not needed for --help
    from longshort_service.graph_check import ModelError  # noqa: PLC0415  not needed for --help

    try:
        signature = Engine(file, provider="cpu", intra_op_num_threads=1).signature
    except ModelError as error:
        raise Mistake(str(error)) from None
    click.echo(signature.to_json() if as_json else "\n".join(description(signature, file)))


def find_model_file(path: Path) -> Path:
    """Return the model file that a path means. Raises Mistake with what was looked for."""
    shipped = shipped_models()
    if len(path.parts) == 1 and not path.exists() and (shipped / path).is_dir():
        path = shipped / path
    if path.is_file():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    found = {
        int(file.parent.name): file for file in path.glob(f"*/{MODEL_FILE}") if file.parent.name.isdecimal()
    }
    if found:
        return found[max(found)]
    if not path.exists():
        there = " and ".join(sorted(folder.name for folder in shipped.iterdir() if folder.is_dir()))
        raise Mistake(f"{path}: no such file or folder, and no model that ships ({there})")
    found_in = (file.parent for file in path.glob(f"*/*/{MODEL_FILE}"))
    names = sorted({folder.parent.name for folder in found_in if folder.name.isdecimal()})
    raise Mistake(f"{path}: no {MODEL_FILE} in it{f'; there is {path / names[0]}' if names else ''}")


def shipped_models() -> Path:
    """Return the folder of the models that ship."""
    return Path(str(resources.files("longshort_service") / "models"))


def description(signature: Signature, file: Path) -> Iterator[str]:
    """Yield the lines that describe a model."""
    yield f"{signature.name}{_versions(file)}"
    if signature.description:
        yield signature.description
    yield ""
    yield from _rows("takes", (_channel(c) for c in signature.features))
    yield from _rows("gives", (_channel(c) for c in signature.outputs))
    facts = {
        "one step": _duration(signature.step_s),
        "missing": MISSING[signature.missing.value],
        "forecast": ", ".join(f"{pair.output} is fed back as {pair.feature}" for pair in signature.forecast)
        or "no",
        "explain": "yes"
        if file.with_name(EXPLAIN_FILE).is_file()
        else f"no ({EXPLAIN_FILE} is not beside it)",
    }
    for name, text in facts.items():
        yield from _rows(name, [text])
    yield from _rows("remembers", _memories(signature))
    yield from _rows("trained on", [signature.trained_on or "not said"])
    scores = ", ".join(f"{name} {score:.4g}" for name, score in signature.scores.items())
    yield from _rows("scores", [scores or "none"])
    yield from _rows("fingerprint", [signature.fingerprint or "none"])
    yield from _rows("file", [f"{file}, {file.stat().st_size / 1000:.0f} kB"])


def _rows(name: str, texts: Iterator[str] | list[str]) -> Iterator[str]:
    for text in texts:
        yield f"  {name:12} {text}"
        name = ""


def _channel(channel: Channel) -> str:
    quantile = "" if channel.quantile is None else f"{100 * channel.quantile:g} % quantile"
    return f"{channel.name:12} {channel.unit:20} {quantile}".rstrip()


def _duration(step_s: float | None) -> str:
    if step_s is None:
        return "at any time"
    for size, unit in STEPS:
        if step_s >= size:
            return f"every {step_s / size:g} {unit}"
    return f"every {step_s:g} s"


def _memories(signature: Signature) -> Iterator[str]:
    total = 0
    for state in signature.states:
        shape = state.row_shape()
        size = 4
        for length in shape:
            size *= length
        total += size
        role = "" if state.memory is None else f" ({state.memory.value.replace('_', '-')} memory)"
        yield f"{state.input} {list(shape)} f32{role}"
    yield f"{total} bytes a session"


def _versions(file: Path) -> str:
    """Return the version by the file's folder, and its siblings."""
    folder = file.parent
    if not folder.name.isdecimal():
        return ""
    others = sorted(
        int(other.parent.name)
        for other in folder.parent.glob(f"*/{MODEL_FILE}")
        if other.parent.name.isdecimal() and other.parent != folder
    )
    beside = f" (beside it: {', '.join(map(str, others))})" if others else ""
    return f", version {folder.name}{beside}"
