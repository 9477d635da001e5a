"""What each of a graph's inputs and outputs is: values, state, constant, answer. Pure.

What signature.toml says goes first; the rest is told by names, dtypes and shapes, and asked where they do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from longshort_service.graph_check import ModelError
from longshort_service.ports import DTYPES
from longshort_service.state_pairs import Pair, find_pairs, fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from longshort_service.graph_facts import GraphFacts, TensorFact
    from longshort_service.signature_file import Said

SEQUENCE_LENS: Final = (
    *("sequence_lens", "seq_lens", "sequence_lengths", "sequence_length", "seq_lengths", "seq_len"),
    *("lengths", "lens", "x_lens", "x_lengths", "input_lengths"),
)


SAMPLE_RATES: Final = ("sr", "sample_rate", "samplerate", "sampling_rate")
SAID: Final = "said"  # how a pair is known that signature.toml names


@dataclass(frozen=True, slots=True)
class Question:
    """What cannot be inferred: a sentence, and the lines of signature.toml that would answer it."""

    text: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Roles:
    """What each tensor of a graph is, in the graph's order."""

    values: tuple[TensorFact, ...]
    answers: tuple[TensorFact, ...]
    states: tuple[Pair, ...]  # `how` is also SAID
    session_constants: tuple[TensorFact, ...] = ()
    sequence_lens: str | None = None
    questions: tuple[Question, ...] = ()
    doubtful: frozenset[str] = frozenset()  # inputs that may be values or states


def key(name: str) -> str:
    """Return a name as a key of TOML."""
    if name and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name):
        return name
    escaped = "".join(
        f"\\u{ord(letter):04x}" if ord(letter) < 32 or ord(letter) == 127 or letter in '"\\' else letter
        for letter in name
    )
    return f'"{escaped}"'


def text(value: str) -> str:
    """Return a text as a value of TOML."""
    quoted = key(value)
    return quoted if quoted.startswith('"') else f'"{quoted}"'


def roles_of(facts: GraphFacts, said: Said) -> Roles:
    """Return what each input and output is. Raises ModelError where what is said does not fit the graph."""
    _check_names(facts, said)
    known = {*said.constants, *said.session_constants}
    states = [
        Pair(facts.input(name), facts.output(state.output), SAID) for name, state in said.states.items()
    ]
    taken = {state.output for state in said.states.values()} | {
        n for n, o in said.outputs.items() if o.ignore
    }
    lens = said.sequence_lens or _lens_by_name(facts, known | {*said.states, *said.inputs})
    left = [fact for fact in facts.inputs if fact.name not in {*known, *said.states, lens}]
    outputs = [fact for fact in facts.outputs if fact.name not in taken]
    found = find_pairs(
        [fact for fact in left if fact.name not in said.inputs],
        [fact for fact in outputs if fact.name not in said.outputs],
        num_spared=(
            sum(fact.name in said.inputs for fact in left),
            sum(fact.name in said.outputs for fact in outputs),
        ),
        knows_states=bool(states),
    )
    states += [*found.misfits, *found.pairs]
    for state in states:
        _check_fit(state)
    paired = {state.input.name for state in states}
    next_values = {state.output.name for state in states}
    answers = tuple(fact for fact in outputs if fact.name not in next_values)
    places = {fact.name: place for place, fact in enumerate(facts.inputs)}
    states.sort(key=lambda state: places[state.input.name])
    values = tuple(fact for fact in left if fact.name not in paired)
    roles = Roles(
        values=values,
        answers=answers,
        states=tuple(states),
        session_constants=tuple(fact for fact in facts.inputs if fact.name in said.session_constants),
        sequence_lens=lens,
        questions=(
            *_ask_pairs(found.doubtful, left, answers, states, said),
            *_ask_constants(values, said),
        ),
        doubtful=frozenset(fact.name for fact in found.doubtful),
    )
    _check_dtypes(roles, facts)
    return roles


def _check_names(facts: GraphFacts, said: Said) -> None:
    inputs, outputs = [fact.name for fact in facts.inputs], [fact.name for fact in facts.outputs]
    for name, state in said.states.items():
        if not state.output:
            raise ModelError(
                f"[states.{key(name)}] needs output, its next value: one of {', '.join(outputs) or 'none'}"
            )
    for table, names, there in (
        ("inputs", said.inputs, inputs),
        ("outputs", said.outputs, outputs),
        ("states", said.states, inputs),
        ("constants", said.constants, inputs),
        ("session_constants", said.session_constants, inputs),
        ("sequence_lens", [said.sequence_lens] if said.sequence_lens else [], inputs),
        ("states", [state.output for state in said.states.values()], outputs),
    ):
        for name in names:
            if name not in there:
                raise ModelError(f"[{table}] names {name!r}: the graph has {', '.join(there) or 'none'}")
    roles = [
        name for names in (said.inputs, said.states, said.constants, said.session_constants) for name in names
    ]
    twice = sorted({name for name in roles if roles.count(name) > 1})
    results = [state.output for state in said.states.values()]
    results += [name for name, own in said.outputs.items() if not own.ignore]
    twice += sorted({name for name in results if results.count(name) > 1})
    if twice:
        raise ModelError(
            f"{twice[0]!r} is said to be two things: an input has one role, an output is an answer or one state"
        )


def _lens_by_name(facts: GraphFacts, known: Iterable[str]) -> str | None:
    found = [
        fact.name
        for fact in facts.inputs
        if fact.name.lower() in SEQUENCE_LENS
        and fact.name not in set(known)
        and fact.dtype == "int32"
        and len(fact.axes or ()) == 1
    ]
    return found[0] if len(found) == 1 else None


def _check_fit(state: Pair) -> None:
    if fits(state.input, state.output):
        return
    raise ModelError(
        f"the state {state.input.name} is {described(state.input)}, its next value {state.output.name} is "
        f"{described(state.output)}: it does not fit. If they are no pair, say what they are in signature.toml: "
        f"[inputs.{key(state.input.name)}] and [outputs.{key(state.output.name)}], or the right one in [states]"
    )


def _check_dtypes(roles: Roles, facts: GraphFacts) -> None:
    used = [*facts.inputs, *roles.answers, *(state.output for state in roles.states)]
    for fact in used:
        if fact.dtype not in DTYPES:
            way_out = ""
            if fact in roles.answers:
                way_out = f". To serve without it: [outputs.{key(fact.name)}] ignore = true"
            raise ModelError(f"{fact.name} is {fact.dtype}: served are {', '.join(DTYPES)}{way_out}")
    if roles.sequence_lens and facts.input(roles.sequence_lens).dtype != "int32":
        raise ModelError(f"sequence_lens: {roles.sequence_lens} is not int32 [batch]")
    if not roles.values:
        raise ModelError("every input is a state or a constant: nothing is left to carry values")
    if not roles.answers:
        raise ModelError(
            "every output is a state or ignored: nothing is left to answer with. If the state is the answer, export it "
            "twice: an Identity of it as an output of its own"
        )


def _ask_pairs(
    doubtful: tuple[TensorFact, ...],
    left: list[TensorFact],
    outputs: Sequence[TensorFact],
    states: list[Pair],
    said: Said,
) -> Iterable[Question]:
    has_memory = states or any(tensor.window for tensor in said.inputs.values())
    if has_memory:
        yield from (_ask_part(fact, outputs) for fact in doubtful)
        return
    tensors = [fact.name for fact in left if fact.axes != ()]
    if len(tensors) < 2:
        yield _ask_export(tensors, said)
        return
    yield Question(
        "Which inputs are states, and which outputs are their next values? Names and shapes do not tell",
        ("[states]", *(_pair_lines(doubtful, outputs) or ['some_input = "some_output"'])),
    )


def _ask_export(tensors: list[str], said: Said) -> Question:
    """Return what is said of a graph that takes nothing beside its values: its memory is not among its inputs."""
    constants = ", ".join((*said.constants, *said.session_constants))
    beside = f" beside the constants {constants}" if constants else ""
    return Question(
        f"This graph has no state among its inputs: it takes {', '.join(tensors) or 'none'}{beside} and "
        "no more. If it has a memory, that begins anew at every run",
        (
            "# Export it with its states as arguments and their next values as results: docs/export.md",
            "# or keep the last values for it: [inputs.NAME] window = { size = ..., axis = -1 }",
        ),
    )


def _pair_lines(doubtful: tuple[TensorFact, ...], outputs: Sequence[TensorFact]) -> list[str]:
    """Return lines of [states]: each input with an output of its own, the most alike, and which others there are."""
    used: set[str] = set()
    lines = []
    for fact in doubtful:
        partners = _most_alike(fact, outputs)
        if not partners:
            continue
        free = [name for name in partners if name not in used]
        first = (free or partners)[0]
        others = " or ".join(text(name) for name in partners if name != first)
        used.add(first)
        line = f"{key(fact.name)} = {text(first)}" + (f"  # or {others}" if others else "")
        lines.append(line if free else f"# or {line}")  # an output is the next value of one state
    return lines


def _most_alike(fact: TensorFact, outputs: Sequence[TensorFact]) -> list[str]:
    """Return the outputs that could be an input's next value and have the most of its axes."""
    alike = {
        other.name: sum(a == b for a, b in zip(fact.axes or (), other.axes or (), strict=False))
        for other in outputs
        if fits(fact, other)
    }
    return [name for name, count in alike.items() if count == max(alike.values())]


def _ask_part(fact: TensorFact, outputs: Sequence[TensorFact]) -> Question:
    partners = [other.name for other in outputs if fits(fact, other)]
    axes = ", ".join('"*"' if isinstance(axis, int) else '"batch"' for axis in fact.axes or ())
    return Question(
        f"Is {fact.name}, {described(fact)}, a state whose next value is {' or '.join(partners)}, or a value of every "
        "step?",
        (
            f"[states.{key(fact.name)}]",
            f"output = {text(partners[0])}",
            "# or",
            f"# [inputs.{key(fact.name)}]",
            f"# axes = [{axes}]",
        ),
    )


def _ask_constants(values: tuple[TensorFact, ...], said: Said) -> Iterable[Question]:
    """Ask for all single numbers at once: TOML takes a table once."""
    single = [fact for fact in values if fact.axes == () and fact.name not in said.inputs]
    if single:
        names = ", ".join(f"{fact.name} ({fact.dtype})" for fact in single)
        lines = [f"{key(fact.name)} = {16000 if fact.name.lower() in SAMPLE_RATES else 0}" for fact in single]
        yield Question(
            f"Which number is the same for all sessions and steps: {names}?", ("[constants]", *lines)
        )


def described(fact: TensorFact, axes: Iterable[object] | None = None) -> str:
    """Return a tensor's dtype and axes as people read them."""
    shown = fact.axes if axes is None else axes
    if shown is None:
        return f"{fact.dtype} of unknown rank"
    return f"{fact.dtype} [{', '.join('?' if axis is None else str(axis) for axis in shown)}]"
