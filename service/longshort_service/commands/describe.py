"""`longshort describe`: what a model file promises, as a person would want to read it."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from longshort_service.commands.group import Mistake
from longshort_service.version_folder import EXPLAIN_FILE, MODEL_FILE, SIGNATURE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from longshort_service.signature import Channel, Signature

MOST_CHANNELS: Final = 16  # that are listed one by one
SHORT: Final = {"float16": "f16", "float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}
ITEM_BYTES: Final = {"float16": 2, "float32": 4, "float64": 8, "int32": 4, "int64": 8}
STEPS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
MISSING: Final = {
    "REJECT": "refused",
    "REPEAT_LAST": "the session's last value is put in its place; the first must be there",
    "PASS": "handed to the model, which knows what to do with it",
}


@click.command(short_help="Say what a model file promises.")
@click.argument("path", metavar="PATH|NAME", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the signature as the file carries it.")
@click.option(
    "--write", is_flag=True, help=f"Write {SIGNATURE_FILE} beside the file: what is known and what is asked."
)
@click.option(
    "--force", is_flag=True, help="With --write: write it anew where there is one; what it says stays."
)
def describe(path: Path, *, as_json: bool, write: bool, force: bool) -> None:
    """Say what the model at PATH takes, gives, remembers, and how well it did.

    PATH is a model file, the folder of a version, or that of a model (its highest version); where there is no
    such folder, NAME is a model that ships. Read and checked as the service does it: a file without a signature is
    told by its graph and by signature.toml beside it.

    \b
    Examples:
      longshort describe metro
      longshort describe models/metro
      longshort describe models/metro/1 --json
      longshort describe models/mine/1 --write
    """  # noqa: D301  click reads the backspace
    file = find_model_file(path)
    from longshort_service.engine import Engine  # noqa: PLC0415  not needed for --help
    from longshort_service.graph_check import ModelError  # noqa: PLC0415  not needed for --help
    from longshort_service.model_signature import NotInferred, resolve  # noqa: PLC0415  not needed for --help
    from longshort_service.signature_json import to_json  # noqa: PLC0415  not needed for --help

    try:
        if write:
            click.echo(write_skeleton(file, force=force))
            return
        resolved = resolve(file.parent, file)
        engine = Engine(
            file,
            provider="cpu",
            intra_op_num_threads=1,
            signature=resolved.signature,
            arrays=resolved.arrays,
        )
    except NotInferred as error:
        _say(error.asked)
        raise Mistake(error.summary) from None
    except ModelError as error:
        raise Mistake(str(error)) from None
    if as_json:
        click.echo(to_json(engine.signature))
        return
    _say("\n".join(description(engine.signature, file)))
    if resolved.table is not None:
        _say("\n" + "\n".join(f"  {line}" for line in resolved.table.splitlines()))
    for warning in resolved.warnings:
        _say(f"\n  {warning}.")


def _say(text: str) -> None:
    """Print a text; what a file's names and words hold of control characters writes nothing on the terminal."""
    click.echo("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def write_skeleton(file: Path, *, force: bool) -> str:
    """Write signature.toml beside a model file, and return a sentence about it.

    Raises Mistake where there is one already, unless `force`; what that one says is kept then.
    """
    from longshort_service.model_signature import understand  # noqa: PLC0415  not needed for --help
    from longshort_service.signature_text import skeleton  # noqa: PLC0415  not needed for --help

    target = file.parent / SIGNATURE_FILE
    if target.exists() and not force:
        raise Mistake(
            f"{target} is there already: --force writes it anew, what it says stays, its comments do not"
        )
    known = understand(file.parent, file)
    text = skeleton(known.facts, known.roles, known.found, known.said, known.questions, name=known.name)
    part = target.with_name(f".{SIGNATURE_FILE}.part")  # a watching service must not read half of it
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    if not known.questions:
        return f"{target}: written; nothing has to be added"
    number = len(known.questions)
    return f"{target}: written; {number} {'question is' if number == 1 else 'questions are'} open at its end"


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
        there = ", ".join(sorted(folder.name for folder in shipped.iterdir() if folder.is_dir()))
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
    yield from _rows("takes", _channels(signature.features))
    yield from _rows("gives", _channels(signature.outputs))
    facts = {
        "one step": _duration(signature.step_s),
        "missing": MISSING[signature.missing.value],
        "forecast": ", ".join(f"{pair.output} is fed back as {pair.feature}" for pair in signature.forecast)
        or "no",
        "explain": _explanation(file),
    }
    for name, text in facts.items():
        yield from _rows(name, [text])
    yield from _rows("remembers", _memories(signature))
    yield from _rows("trained on", [signature.trained_on or "not said"])
    scores = ", ".join(f"{name} {score:.4g}" for name, score in signature.scores.items())
    yield from _rows("scores", [scores or "none"])
    yield from _rows("fingerprint", [signature.fingerprint or "none"])
    yield from _rows("file", [f"{file}, {max(1, round(file.stat().st_size / 1000))} kB"])


def _explanation(file: Path) -> str:
    from longshort_service.explain_file import can_explain  # noqa: PLC0415  not needed for --help

    if file.with_name(EXPLAIN_FILE).is_file():
        return "yes"
    if can_explain(file):
        return "yes (derived from the file's own LSTM, GRU or RNN nodes)"
    return f"no ({EXPLAIN_FILE} is not beside it, and it cannot be derived from the file)"


def _rows(name: str, texts: Iterator[str] | list[str]) -> Iterator[str]:
    for text in texts:
        yield f"  {name:12} {text}"
        name = ""


def _channels(channels: Sequence[Channel]) -> Iterator[str]:
    if len(channels) <= MOST_CHANNELS:
        yield from (_channel(channel) for channel in channels)
    else:
        yield f"{channels[0].name} to {channels[-1].name}: {len(channels)} numbers"


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
        total += math.prod(state.row_shape()) * ITEM_BYTES[state.dtype]
        role = "" if state.memory is None else f" ({state.memory.value.replace('_', '-')} memory)"
        if state.is_constant:
            role = " (given at opening)"
        elif state.window_of:
            role = f" (the last values of {state.window_of})"
        yield f"{state.input} {list(state.row_shape())} {SHORT[state.dtype]}{role}"
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
