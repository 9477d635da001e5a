"""Which outputs are the next values of which inputs: what names tell, and what has to be asked because none do."""

from __future__ import annotations

import pytest
from longshort_service.graph_facts import TensorFact
from longshort_service.state_pairs import Pairing, find_pairs

ROW = ("batch", 8)


def pairing(inputs: dict[str, tuple[int | str, ...]], outputs: dict[str, tuple[int | str, ...]]) -> Pairing:
    return find_pairs(
        [TensorFact(name, "float32", axes) for name, axes in inputs.items()],
        [TensorFact(name, "float32", axes) for name, axes in outputs.items()],
    )


def pairs_of(found: Pairing) -> list[tuple[str, str]]:
    return [(pair.input.name, pair.output.name) for pair in found.pairs]


def asked(found: Pairing) -> list[str]:
    return [fact.name for fact in found.doubtful]


@pytest.mark.parametrize(
    ("given", "result"),
    [("input_frame", "output_frame"), ("input_1", "output_1"), ("audio", "audio_out"), ("spec", "spec_out")],
)
def test_values_with_a_namesake_among_the_answers_are_asked_for_where_others_could_be_the_values(
    given: str, result: str
):
    """Taken for a state the audio would be the denoised audio of the step before, and a level the only value."""
    found = pairing(
        {given: ROW, "h_in": ROW, "level": ("batch", 1)}, {result: ROW, "vad": ("batch", 2), "h_out": ROW}
    )
    assert pairs_of(found) == [("h_in", "h_out")]
    assert asked(found) == [given]


def test_values_with_a_namesake_among_the_answers_are_values_where_nothing_else_could_be():
    found = pairing({"frame": ROW, "h_in": ROW}, {"frame_out": ROW, "h_out": ROW})
    assert pairs_of(found) == [("h_in", "h_out")]
    assert asked(found) == []


@pytest.mark.parametrize(
    ("given", "result"), [("x", "next_x"), ("audio_cache_in", "audio_cache_out"), ("x_state", "x_state_out")]
)
def test_what_is_called_the_next_or_a_memory_is_a_state_whatever_it_holds(given: str, result: str):
    found = pairing({"u": ("batch", 3), given: ROW}, {"y": ("batch", 3), result: ROW})
    assert pairs_of(found) == [(given, result)]
    assert asked(found) == []


def test_memories_of_one_shape_are_paired_by_their_names_in_any_order():
    found = pairing({"x": ("batch", 3), "c0": ROW, "h0": ROW}, {"hn": ROW, "y": ("batch", 1), "cn": ROW})
    assert sorted(pairs_of(found)) == [("c0", "cn"), ("h0", "hn")]


def test_memories_of_one_shape_without_names_are_not_guessed():
    found = pairing({"x": ("batch", 3), "1": ROW, "2": ROW}, {"y": ("batch", 1), "11": ROW, "12": ROW})
    assert pairs_of(found) == []
    assert asked(found) == ["1", "2"]


def test_inputs_that_fit_several_outputs_beside_states_with_names_are_asked_for():
    found = pairing(
        {"x": ("batch", 3), "h_in": ROW, "a": ROW, "b": ROW},
        {"y": ("batch", 1), "h_out": ROW, "p": ROW, "q": ROW},
    )
    assert pairs_of(found) == [("h_in", "h_out")]
    assert asked(found) == ["a", "b"]


def test_memory_whose_axes_are_open_is_a_state_and_values_over_time_are_none():
    timed = ("batch", "time", 3)
    open_state = ("layers", "batch", "hidden")
    found = pairing({"price": timed, "h0": open_state}, {"price_out": timed, "hn": open_state})
    assert pairs_of(found) == [("h0", "hn")]
    assert asked(found) == []
