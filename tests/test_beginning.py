"""What a session begins in: the model's own states, what is given of them, and the constants that it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_service import errors
from longshort_service.beginning import begin_again, begin_states
from longshort_service.ports import Port
from longshort_service.signature import Channel, Signature, State
from tables import TableModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMORY = State("h0", "hn", (1, -1, 2), 1, initial=0.5)
VOICE = State("voice", "", (-1, 3), 0, dtype="float64")
DEFAULT_VOICE = State("voice", "", (-1, 3), 0, dtype="float64", initial_file="voice.npy")
WINDOW = State("x", "x", (-1, 2, 1), 0, window_of="x", window_axis=1)


def model_of(*states: State) -> TableModel:
    signature = Signature(
        name="toy",
        features=(Channel("x"),),
        outputs=(Channel("y"),),
        states=states,
        inputs=(Port("x", (1,), time_axis=None),),
        fingerprint="f1",
    )
    return TableModel(signature=signature)


def memory(value: float) -> NDArray[np.float32]:
    return np.full((1, 2), value, np.float32)


def voice(value: float) -> NDArray[np.float64]:
    return np.full(3, value, np.float64)


def as_lists(states: Any) -> list[Any]:
    return [state.tolist() for state in states]


def test_session_that_is_given_nothing_begins_in_the_model_s_own_states():
    assert begin_states(model_of(MEMORY), {}) is None
    assert begin_states(model_of(MEMORY, DEFAULT_VOICE), {}) is None


def test_session_begins_in_what_is_given_and_for_the_rest_in_the_model_s_own():
    model = model_of(MEMORY, VOICE)
    states = begin_states(model, {"voice": voice(3)})
    assert states is not None
    assert as_lists(states) == [[[0.5, 0.5]], [3, 3, 3]]
    states = begin_states(model, {"voice": voice(3), "h0": memory(7)})
    assert states is not None
    assert as_lists(states) == [[[7, 7]], [3, 3, 3]]


@pytest.mark.parametrize("given", [{}, {"h0": memory(1)}], ids=["nothing", "another state"])
def test_constant_without_a_default_must_be_given(given: dict[str, NDArray[Any]]):
    with pytest.raises(errors.ConstantMissing, match=r"voice \(float64 \[3\]\)") as caught:
        begin_states(model_of(MEMORY, VOICE), given)
    assert caught.value.metadata == {"model": "toy", "constant": "voice"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"other": memory(1)}, "no state 'other' to begin with; there are: h0"),
        ({"x": np.zeros((2, 1), np.float32)}, "no state 'x'"),  # a window is the server's own
        ({"h0": np.zeros((1, 3), np.float32)}, r"h0 is float32 \[1, 2\], not float32 \[1, 3\]"),
        ({"h0": np.zeros((1, 2))}, r"h0 is float32 \[1, 2\], not float64 \[1, 2\]"),
    ],
    ids=["unknown name", "window", "shape", "dtype"],
)
def test_what_fits_no_state_is_refused(given: dict[str, NDArray[Any]], words: str):
    with pytest.raises(errors.WrongShape, match=words):
        begin_states(model_of(MEMORY, WINDOW), given)


def test_model_without_states_says_that_there_are_none():
    with pytest.raises(errors.WrongShape, match="there are: none"):
        begin_states(model_of(), {"h0": memory(1)})


def test_session_that_begins_again_keeps_its_constants_alone():
    states = begin_again(model_of(MEMORY, VOICE), [memory(9), voice(3)])
    assert as_lists(states) == [[[0.5, 0.5]], [3, 3, 3]]


def test_states_of_another_file_are_let_go_of():
    assert as_lists(begin_again(model_of(MEMORY), [voice(3)])) == [[[0.5, 0.5]]]
    with pytest.raises(errors.ConstantMissing):
        begin_again(model_of(MEMORY, VOICE), [voice(3)])


def test_session_that_never_had_states_of_its_own_begins_in_the_model_s():
    assert as_lists(begin_again(model_of(MEMORY), [])) == [[[0.5, 0.5]]]
