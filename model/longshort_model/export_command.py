"""The command `export`: a user's own PyTorch module into a model repository.

Owns its options and their checks. Imports PyTorch only when it runs, so that help is quick and needs none.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from longshort_service.signature import Feedback, MissingValue

from longshort_model.command import NAME, Refusal

if TYPE_CHECKING:
    from longshort_model.module_export import Exported

WITHOUT_EXTRA = (
    "exporting needs PyTorch and onnx, which come with the train extra: "
    "pip install 'longshort-server[train]', in a checkout pip install ./client '.[train]'"
)
TENSOR = "NAME:SIZES[:DTYPE[:LOW..HIGH]]"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--kwargs", default="{}", metavar="JSON", help="What to make it with, as a JSON object.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its weights, as torch.save(module.state_dict(), FILE) writes them.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar=TENSOR,
    help="An input of forward, in order. Sizes are numbers, batch and time: x:batch,time,3 or "
    "t:time,batch:int64:0..99. By default what the module's example_inputs(batch, time) returns.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar=TENSOR,
    help="A state of forward, in order, zero at first: h:1,batch,64. "
    "By default what its initial_states(batch) returns.",
)
@click.option(
    "--answer", "answers", multiple=True, metavar="NAME", help="A tensor that forward returns, in order. [y]"
)
@click.option(
    "--feature", "features", multiple=True, metavar="NAME", help="The name of each number of a value."
)
@click.option(
    "--output", "outputs", multiple=True, metavar="NAME", help="The name of each number of an answer."
)
@click.option(
    "--forecast",
    "forecast",
    multiple=True,
    metavar="OUTPUT=FEATURE",
    help="In a forecast, that output is the next value of that feature.",
)
@click.option(
    "--missing",
    type=click.Choice([kind.value for kind in MissingValue], case_sensitive=False),
    default=MissingValue.REJECT.value,
    show_default=True,
    help="What a NaN among the values means.",
)
@click.option("--description", default="", help="What the model is for.")
@click.option("--state-family", default="", metavar="NAME", help="As longshort train has it.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The model repository to write to.",
)
@click.option("--name", metavar="NAME", help="The model's name. By default the class's, in small letters.")
@click.option("--version", type=click.IntRange(min=1), help="The version's number. By default the next one.")
def export(
    target: str,
    kwargs: str,
    weights: Path | None,
    *,
    inputs: tuple[str, ...],
    states: tuple[str, ...],
    answers: tuple[str, ...],
    out: Path,
    name: str | None,
    version: int | None,
    **words: Any,
) -> None:
    """Export a PyTorch module with forward(x, *states) -> (y, *states) to a model repository.

    The file is written only if it does in onnxruntime what the module does in PyTorch: at another batch and time than
    the example's, from states that are not zero, and over 500 carried steps.

    \b
    Examples:
      longshort export my_models:Wave
      longshort export my_models:Wave --kwargs '{"hidden": 64}' --weights wave.pt --name wave
      longshort export my_models:Net --input x:batch,time,3 --state h:1,batch,64 --state c:1,batch,64
      longshort export my_models:Words --input token:batch,time:int64:0..999 --state h:1,batch,32
    """  # noqa: D301  click reads the backspace
    arguments = _arguments(kwargs)
    model_name = name or _name_of(target)
    if not NAME.fullmatch(model_name):
        raise click.UsageError(f"{model_name!r} cannot be the model's name; give one with --name")
    feedback = tuple(_feedback(pair) for pair in words.pop("forecast"))
    missing = MissingValue(words.pop("missing").upper())
    try:
        from longshort_model import module_export, module_taken, user_module  # noqa: PLC0415  import torch
        from longshort_model.export import ExportError  # noqa: PLC0415
        from longshort_model.module_face import parse  # noqa: PLC0415
    except ImportError as error:
        raise Refusal(WITHOUT_EXTRA) from error
    faces = [
        [_parsed(parse, flag, text) for text in given]
        for flag, given in (("--input", inputs), ("--state", states))
    ]
    try:
        module = user_module.load(target, arguments, weights)
        taken = module_taken.take(module, faces[0], faces[1], answers)
        told = module_export.Words(model_name, missing=missing, forecast=feedback, **words)
        made = module_export.export_module(taken, told, out, version)
    except ExportError as error:
        raise Refusal(f"{target}: {error}") from error
    click.echo(describe(made))
    click.echo(f"next: longshort serve {shlex.quote(str(out))}")


def describe(made: Exported) -> str:
    """Return what was written and what it takes, in a few lines."""
    signature = made.signature
    lines = [
        f"{made.folder}, {made.way}, within {made.parity.distance:.1g} of PyTorch over 500 carried steps"
    ]
    lines += [f"  not {refused}" for refused in made.refused]
    for what, ports in (("value", signature.inputs), ("answer", signature.answers)):
        lines += [f"  {what:6} {port.name} {list(port.shape)} {port.dtype}" for port in ports]
    for state in signature.states:
        start = f"from {state.initial_file}" if state.initial_file else f"at first {state.initial:g}"
        lines.append(f"  state  {state.input} {list(state.shape)} {state.dtype}, {start}")
    if signature.steps_alone:
        lines.append("  a run takes one step: a longer message is run step by step")
    if not made.parity.rows_are_exact:
        lines.append("  rows differ in their last bits with the batch that they are in")
    return "\n".join(lines)


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--kwargs is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise click.UsageError("--kwargs must be a JSON object, such as '{\"hidden\": 64}'")
    return arguments


def _name_of(target: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", target.rpartition(":")[2]).lower()


def _feedback(pair: str) -> Feedback:
    output, equals, feature = pair.partition("=")
    if not equals:
        raise click.UsageError(f"--forecast {pair!r}: it has the form OUTPUT=FEATURE")
    return Feedback(output, feature)


def _parsed(parse: Any, flag: str, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise click.UsageError(f"{flag} {text!r}: {error}") from error
