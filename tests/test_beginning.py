"""The states that a session begins in: given, the model's own, and the constants that it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.beginning import begin_again, begin_states
from longshort_service.ports import Port
from longshort_service.signature import Channel, Signature, State
from tables import TableModel


def model_of(*states: State) -> TableModel:
    signature = Signature(
        "toy", (Channel("x"),), (Channel("y"),), states, inputs=(Port("x", (1,), time_axis=None),)
    )
    return TableModel(signature=signature)


CARRIED = State("h", "hn", (1, -1, 2), 1, initial=3.0)
VOICE = State("who", "", (-1, 2), 0, dtype="float64")
KNOWN_VOICE = State("who", "", (-1, 2), 0, dtype="float64", initial_file="who.npy")
WINDOW = State("x.window", "", (-1, 4), 0, window_of="x")


def test_what_is_given_takes_the_place_of_the_model_s_own():
    given = {"who": np.array([1.0, 2.0])}
    assert begin_states(model_of(CARRIED), {}) is None
    states = begin_states(model_of(CARRIED, VOICE, WINDOW), given)
    assert states is not None
    assert [state.tolist() for state in states] == [[[3, 3]], [1, 2], [0, 0, 0, 0]]


def test_constant_with_a_default_need_not_be_given():
    assert begin_states(model_of(CARRIED, KNOWN_VOICE), {}) is None
    with pytest.raises(errors.ConstantMissing, match=r"who \(float64 \[2\]\)") as caught:
        begin_states(model_of(CARRIED, VOICE), {"h": np.zeros((1, 2), np.float32)})
    assert caught.value.metadata == {"model": "toy", "constant": "who"}


@pytest.mark.parametrize(
    "given",
    [
        {"x": np.zeros(1, np.float32)},
        {"x.window": np.zeros(4, np.float32)},
        {"h": np.zeros(2, np.float32)},
        {"h": np.zeros((1, 2))},
    ],
)
def test_what_fits_no_state_is_a_wrong_shape(given: dict[str, Any]):
    with pytest.raises(errors.WrongShape):
        begin_states(model_of(CARRIED, WINDOW), given)


def test_state_that_holds_nan_is_refused_and_infinity_is_not():
    for number in (np.inf, -np.inf):
        assert begin_states(model_of(CARRIED), {"h": np.full((1, 2), number, np.float32)}) is not None
    with pytest.raises(errors.ValueNotFinite, match="h holds NaN"):
        begin_states(model_of(CARRIED), {"h": np.array([[0, np.nan]], np.float32)})


def test_beginning_again_keeps_constants_alone():
    before = [np.ones((1, 2), np.float32), np.array([1.0, 2.0])]
    states = begin_again(model_of(CARRIED, VOICE), before)
    assert [state.tolist() for state in states] == [[[3, 3]], [1, 2]]


def test_states_of_another_file_are_let_go_of_unless_constants_are_needed():
    other = [np.ones(5, np.float32)]
    assert [state.tolist() for state in begin_again(model_of(CARRIED), other)] == [[[3, 3]]]
    with pytest.raises(errors.ConstantMissing):
        begin_again(model_of(CARRIED, VOICE), other)
