"""Which outputs of a graph are the next values of which inputs: by their names, then by dtype and shape.

Pure: works on what a file says. Makers agree on no names: h0 and hn, state and stateN, cache_3 and new_cache_3, x and
next_x, or nothing in common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from longshort_service.graph_facts import TensorFact

# Words that say to which step a tensor belongs; what is called so is a state.
_STEPS: Final = frozenset(
    {"new", "next", "past", "present", "prev", "previous", "old", "updated", "update", "cur", "current"}
    | {"init", "initial", "start", "final", "last", "begin", "end"}
)
# Words that say on which side of the graph a tensor is, or which step it belongs to.
_SIDES: Final = frozenset({"in", "out", "input", "output", "inputs", "outputs"}) | _STEPS
# Words in names of tensors that carry values: with a partner of their own name they are still no states.
_DATA: Final = frozenset(
    {"x", "y", "u", "input", "inputs", "output", "outputs", "audio", "wave", "waveform", "signal", "samples"}
    | {"chunk", "frame", "frames", "feature", "features", "feat", "feats", "spec", "spectrum", "mel", "mag"}
    | {"noisy", "data", "obs", "observation", "token", "tokens", "value", "values", "speech", "image"}
)
# Words in names of tensors that are kept from step to step, whatever data they are of.
_MEMORY: Final = frozenset(
    {"state", "states", "hidden", "cell", "cache", "caches", "mem", "memory", "buffer", "buf", "history"}
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_GLUED: Final = re.compile(
    r"^(?:in|out|new|next|prev|past|present)(?=[a-z])|(?<=[a-z])(?:in|out|new|next|prev|n)$"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A state: `output` is what `input` is at the next step. `how`: it was found by "name" or by "shape"."""

    input: TensorFact
    output: TensorFact
    how: str


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs found; what has names alike and does not fit; what could be paired in several ways."""

    pairs: tuple[Pair, ...] = ()
    misfits: tuple[Pair, ...] = ()
    doubtful: tuple[TensorFact, ...] = ()


def find_pairs(
    inputs: Sequence[TensorFact],
    outputs: Sequence[TensorFact],
    num_spared: tuple[int, int] = (0, 0),
    *,
    knows_states: bool = False,
) -> Pairing:
    """Return the states among inputs and outputs. At least one of each is left, for values and answers.

    `num_spared` says how many inputs and outputs beside these are known to carry values and answers, `knows_states`
    whether others are known to be states.
    """
    # Of two open axes one is time, unless a name says that it is kept: then its axes are asked for.
    left_in = [fact for fact in inputs if len(fact.open_axes) <= 1 or _is_memory(fact.name)]
    left_out = list(outputs)
    pairs: list[Pair] = []
    misfits: list[Pair] = []
    for key in (_words, _without_counts, _unglued):
        for pair in _by_name(left_in, left_out, key):
            (pairs if fits(pair.input, pair.output) else misfits).append(pair)
            left_in.remove(pair.input)
            left_out.remove(pair.output)
    num_carriers = min(
        sum(fact.axes != () for fact in inputs) + num_spared[0],  # a single number is a constant
        len(outputs) + num_spared[1],
    )
    kept = _leaving_data(pairs, num_carriers)
    if pairs and not kept:
        return Pairing(doubtful=tuple(pair.input for pair in pairs))
    unsure = [pair for pair in kept if is_data(pair.input.name) and not _tells_steps(pair)]
    pairs = [pair for pair in kept if pair not in unsure]
    taken = {id(fact) for pair in pairs for fact in (pair.input, pair.output)}
    spare = num_carriers - len(pairs) - 1
    found, doubtful = _by_shape(
        [fact for fact in left_in if id(fact) not in taken and fact.axes and len(fact.open_axes) <= 1],
        [fact for fact in left_out if id(fact) not in taken and fact.axes],
        spare,
    )
    # What only has a state's shape beside states with names may be given at every step.
    if pairs or unsure or knows_states:
        candidates = (*(pair.input for pair in found), *doubtful) if spare > 0 else ()
        doubtful = tuple(fact for fact in candidates if not is_data(fact.name))
        found = []
    doubtful = (*(pair.input for pair in unsure), *doubtful)
    paired = {pair.output.name for pair in (*pairs, *found)}
    wrong = tuple(pair for pair in misfits if not is_data(pair.input.name) and pair.output.name not in paired)
    return Pairing((*pairs, *found), wrong, doubtful)


def fits(given: TensorFact, result: TensorFact) -> bool:
    """Return whether an output can be an input at the next step, as far as the file says."""
    if given.dtype != result.dtype:
        return False
    if given.axes is None or result.axes is None:
        return True
    return len(given.axes) == len(result.axes) and all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b
        for a, b in zip(given.axes, result.axes, strict=True)
    )


def is_data(name: str) -> bool:
    """Return whether a name sounds as if it carried values."""
    words = set(_split(name))
    return not words.isdisjoint(_DATA) and words.isdisjoint(_MEMORY)


def _is_memory(name: str) -> bool:
    """Return whether a name sounds as if it were kept from step to step."""
    return not (_MEMORY | {"h", "c", "hx", "cx"}).isdisjoint(_split(name))


def _tells_steps(pair: Pair) -> bool:
    """Return whether the names say that one is the other at the next step: x and next_x, but not x_in and x_out."""
    return not _STEPS.isdisjoint((*_split(pair.input.name), *_split(pair.output.name)))


def _split(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name.replace("past_key_values", "past"))]


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in _split(name) if word not in _SIDES)


def _without_counts(name: str) -> tuple[str, ...]:
    """Return a name's words without the 0 or n at their end: h0 and h_n, state and stateN, are one."""
    words = _words(name)
    return words[:-1] if len(words) > 1 and words[-1] in ("0", "1", "n") else words


def _unglued(name: str) -> tuple[str, ...]:
    """Return a name's words without sides that are written in one with them: hn, hin and hout are h."""
    return tuple(_GLUED.sub("", word) or word for word in _without_counts(name))


def _by_name(
    inputs: Iterable[TensorFact], outputs: Iterable[TensorFact], key: Callable[[str], tuple[str, ...]]
) -> list[Pair]:
    """Return those whose names come to the same, where no other's does."""
    ours, theirs = _grouped(inputs, key), _grouped(outputs, key)
    return [
        Pair(group[0], theirs[words][0], "name")
        for words, group in ours.items()
        if words and len(group) == 1 and len(theirs.get(words, ())) == 1
    ]


def _grouped(
    facts: Iterable[TensorFact], key: Callable[[str], tuple[str, ...]]
) -> dict[tuple[str, ...], list[TensorFact]]:
    groups: dict[tuple[str, ...], list[TensorFact]] = {}
    for fact in facts:
        groups.setdefault(key(fact.name), []).append(fact)
    return groups


def _leaving_data(pairs: list[Pair], num_carriers: int) -> list[Pair]:
    """Return pairs without those that sound like data where otherwise nothing is left for values or answers.

    None are left where all sound alike.
    """
    if len(pairs) < num_carriers:
        return pairs
    states = [pair for pair in pairs if not is_data(pair.input.name)]
    return states if len(states) < len(pairs) else []


def _by_shape(
    inputs: list[TensorFact], outputs: list[TensorFact], spare: int
) -> tuple[list[Pair], tuple[TensorFact, ...]]:
    """Return pairs of which each fits no other, at most `spare`; else none, and those that could be states."""
    fitting = {fact.name: [other for other in outputs if _same_shape(fact, other)] for fact in inputs}
    users = {other.name: [fact for fact in inputs if other in fitting[fact.name]] for other in outputs}
    pairs = [
        Pair(fact, fitting[fact.name][0], "shape")
        for fact in inputs
        if len(fitting[fact.name]) == 1 and len(users[fitting[fact.name][0].name]) == 1
    ]
    candidates = tuple(fact for fact in inputs if fitting[fact.name])
    if len(pairs) != len(candidates):
        return [], candidates
    if len(pairs) <= spare:
        return pairs, ()
    states = [pair for pair in pairs if not is_data(pair.input.name)]  # the data fit each other too
    return (states, ()) if 0 < len(states) <= spare else ([], candidates)


def _same_shape(given: TensorFact, result: TensorFact) -> bool:
    """Return whether two tensors are alike in all that the file says; an open axis may be a batch of 1."""
    return (
        given.dtype == result.dtype
        and given.axes is not None
        and result.axes is not None
        and len(given.axes) == len(result.axes)
        and all(
            a == b or not ((isinstance(a, int) and a > 1) or (isinstance(b, int) and b > 1))
            for a, b in zip(given.axes, result.axes, strict=True)
        )
    )
