"""What is known of a model as text: the table of what was inferred, and the skeleton of its signature.toml. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshort_service.signature_axes import number_or_file, state_lines
from longshort_service.signature_file import SaidState, SaidTensor
from longshort_service.signature_roles import SAID, described, key, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from longshort_service.graph_facts import GraphFacts
    from longshort_service.signature_axes import Found
    from longshort_service.signature_file import Axes, Said
    from longshort_service.signature_roles import Question, Roles


def table(roles: Roles, found: Found, said: Said) -> str:
    """Return what was found out about a graph, a line a tensor."""
    lines = [
        ("values", fact.name, described(fact, found.inputs[fact.name]), _how(said.inputs.get(fact.name)))
        for fact in roles.values
    ]
    for fact in roles.values:
        window = said.inputs.get(fact.name, SaidTensor()).window
        if window is not None:
            lines.append(("window", fact.name, f"the last {window.size}, before the new ones", SAID))
    lines += [
        ("answers", fact.name, described(fact, found.outputs[fact.name]), _how(said.outputs.get(fact.name)))
        for fact in roles.answers
    ]
    for state in roles.states:
        own = said.states.get(state.input.name, SaidState())
        how = SAID if state.how == SAID else f"paired by {state.how}"
        axes = described(state.input, found.states[state.input.name])
        lines.append(("state", f"{state.input.name} -> {state.output.name}", f"{axes} from {own.start}", how))
    for fact in roles.session_constants:
        axes = described(fact, found.states[fact.name])
        lines.append(("constant of a session", fact.name, axes, SAID))
    lines += [("constant", name, str(value), SAID) for name, value in said.constants.items()]
    if roles.sequence_lens is not None:
        how = SAID if said.sequence_lens else "by name"
        lines.append(("steps of each row", roles.sequence_lens, "int32 [batch]", how))
    return "\n".join(_aligned(lines))


def _how(tensor: SaidTensor | None) -> str:
    return SAID if tensor is not None and tensor.axes is not None else "inferred"


def _aligned(lines: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def asked(questions: Sequence[Question]) -> str:
    """Return questions with the lines that would answer them."""
    return "\n\n".join("\n".join([f"# {question.text}", *question.lines]) for question in questions)


def skeleton(
    facts: GraphFacts, roles: Roles, found: Found, said: Said, questions: Sequence[Question], *, name: str
) -> str:
    """Return a signature.toml with all that is known; what is not stands in it as comments with a question."""
    blocks = [_head(said, name)]
    blocks += [_tensor("inputs", n, axes, said.inputs.get(n)) for n, axes in found.inputs.items()]
    blocks += [_tensor("outputs", n, axes, said.outputs.get(n)) for n, axes in found.outputs.items()]
    blocks += [f"[outputs.{key(n)}]\nignore = true" for n, own in said.outputs.items() if own.ignore]
    # Of which the axes are asked the whole table is in the question: TOML takes one once.
    blocks += [
        _state("states", name, found.states[name], said.states.get(name), state.output.name)
        for state in roles.states
        if (name := state.input.name) in found.states
    ]
    blocks += [
        _state("session_constants", name, found.states[name], said.session_constants[name], "")
        for fact in roles.session_constants
        if (name := fact.name) in found.states
    ]
    if said.constants:
        lines = [f"{key(n)} = {number_or_file(value)}" for n, value in said.constants.items()]
        blocks.append("\n".join(["[constants]", *lines]))
    if said.forecast:
        lines = [f"{key(pair.feature)} = {text(pair.output)}" for pair in said.forecast]
        blocks.append("\n".join(["[forecast]", *lines]))
    blocks += [_commented(question) for question in questions]
    inputs = ", ".join(f"{fact.name} {described(fact)}" for fact in facts.inputs)
    outputs = ", ".join(f"{fact.name} {described(fact)}" for fact in facts.outputs)
    top = f"# The graph takes   {inputs}\n# and gives         {outputs}".replace("\r", " ")
    return "\n\n".join(block for block in (top, *blocks) if block) + "\n"


def _head(said: Said, name: str) -> str:
    lines = [f"name = {text(said.name or name)}"]
    for field in ("description", "state_family", "sequence_lens"):
        value = getattr(said, field)
        if value:
            lines.append(f"{field} = {text(value)}")
    lines.append(f'missing = "{said.missing.value.lower() if said.missing else "reject"}"')
    if said.step_s is not None:
        lines.append(f"step_s = {said.step_s!r}")
    lines += [f"{field} = true" for field in ("rows_alone", "steps_alone") if getattr(said, field)]
    return "\n".join(lines)


def _tensor(table_name: str, name: str, axes: Axes, own: SaidTensor | None) -> str:
    lines = [f"[{table_name}.{key(name)}]", f"axes = [{_axes(axes)}]"]
    if own is not None and own.names:
        channels = []
        for channel in own.names:
            quantile = "" if channel.quantile is None else f", quantile = {channel.quantile!r}"
            channels.append(f"{{ name = {text(channel.name)}, unit = {text(channel.unit)}{quantile} }}")
        lines.append(f"names = [{', '.join(channels)}]")
    if own is not None and own.window is not None:
        window = own.window
        lines.append(
            f"window = {{ size = {window.size}, axis = {window.axis}, initial = {window.initial!r} }}"
        )
    return "\n".join(lines)


def _state(table_name: str, name: str, axes: Axes, own: SaidState | None, output: str) -> str:
    return "\n".join([f"[{table_name}.{key(name)}]", *state_lines(own, output, _axes(axes))])


def _axes(axes: Axes) -> str:
    return ", ".join(str(axis) if isinstance(axis, int) else f'"{axis}"' for axis in axes)


def _commented(question: Question) -> str:
    return "\n".join(f"# {line}" for line in (question.text, *question.lines))
