"""From rows to what a graph takes and back: axes, windows, constants, one row or one step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longshort_service.general_run import ALIGNMENT, GeneralRun, from_graph, to_graph
from longshort_service.ports import Port
from longshort_service.signature import Channel, Constant, Signature, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshort_service.arena import States
    from numpy.typing import NDArray


def channels(count: int) -> tuple[Channel, ...]:
    return tuple(Channel(f"c{k}") for k in range(count))


class Recorder:
    """A graph that notes what it was given and answers by a function."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.given: list[dict[str, NDArray[Any]]] = []

    def __call__(self, names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        assert all(array.flags.c_contiguous for array in feeds.values())
        assert not any(array.ctypes.data % ALIGNMENT for array in feeds.values())
        self.given.append({name: array.copy() for name, array in feeds.items()})
        results = self.answer(feeds)
        return [results[name] for name in names]


def run_of(
    signature: Signature, answer: Any, constants: dict[str, NDArray[Any]] | None = None
) -> tuple[GeneralRun, Recorder]:
    graph = Recorder(answer)
    return GeneralRun(graph, signature, constants or {}), graph


@pytest.mark.parametrize(
    ("batch", "time", "expected"),
    [
        (0, 1, (2, 3, 4, 5)),
        (1, 0, (3, 2, 4, 5)),
        (3, 0, (3, 4, 5, 2)),
        (0, None, (2, 4, 5)),
        (2, None, (4, 5, 2)),
    ],
)
def test_axes_are_where_the_graph_has_them_and_come_back(
    batch: int, time: int | None, expected: tuple[int, ...]
):
    port = Port("x", (4, 5), batch_axis=batch, time_axis=time)
    tensor = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)[:, : None if time is not None else 1]
    placed = to_graph(port, tensor)
    assert placed.shape == expected
    np.testing.assert_array_equal(from_graph(port, placed), tensor)


@pytest.mark.parametrize(("time", "expected"), [(1, (4, 3, 5)), (None, (4, 5))])
def test_graph_without_a_batch_takes_the_only_row(time: int | None, expected: tuple[int, ...]):
    port = Port("x", (4, 5), batch_axis=None, time_axis=time)
    tensor = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)[:, : None if time is not None else 1]
    placed = to_graph(port, tensor)
    assert placed.shape == expected
    np.testing.assert_array_equal(from_graph(port, placed), tensor)


def test_inputs_and_answers_go_by_name_and_constants_go_along():
    signature = Signature(
        "two",
        channels(3),
        channels(2),
        (State("s", "s_out", (-1, 1), 0),),
        inputs=(Port("a", (2,), "float64"), Port("n", (), "int64")),
        answers=(Port("p", (), "int64"), Port("q", (1,), "float64")),
        constants=(Constant("rate", (), "int64", 16000),),
    )

    def answer(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {
            "p": feeds["n"] * feeds["rate"],
            "q": feeds["a"].sum(axis=2, keepdims=True),
            "s_out": feeds["s"] + 1,
        }

    run, graph = run_of(signature, answer, {"rate": np.array(16000)})
    a, n = np.arange(8.0).reshape(2, 2, 2), np.array([[1, 2], [3, 2**40]])
    rows = signature.value_row.pack([a, n])
    answers, states = run(rows, None, [np.zeros((2, 1), np.float32)])
    p, q = signature.answer_row.unpack(answers)
    assert p.tolist() == (n * 16000).tolist()
    assert q.tolist() == [[[1], [5]], [[9], [13]]]
    assert states[0].tolist() == [[1], [1]]
    assert graph.given[0]["rate"] == 16000


def windowed(size: int, axis: int = 0, *, rows_alone: bool = False) -> Signature:
    state = State("x.window", "", (-1, size), 0, window_of="x", window_axis=axis)
    carried = State("s", "s_out", (1, -1), 1)
    speaker = State("who", "", (-1, 1), 0)
    return Signature(
        "window",
        channels(3),
        channels(1),
        (state, carried, speaker),
        inputs=(Port("x", (3,), time_axis=None),),
        answers=(Port("y", (1,), time_axis=None),),
        rows_alone=rows_alone,
    )


def first_and_last(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    x = feeds["x"]
    return {"y": x[:, :1] * 100 + x[:, -1:] + feeds["who"], "s_out": feeds["s"] + x.sum(axis=1)}


@pytest.mark.parametrize("rows_alone", [False, True])
@pytest.mark.parametrize(("size", "firsts"), [(2, [0, 2, 5]), (5, [0, 0, 2])])
def test_window_goes_before_the_values_and_moves_on(size: int, firsts: list[int], *, rows_alone: bool):
    run, graph = run_of(windowed(size, rows_alone=rows_alone), first_and_last)
    values = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3).repeat(2, axis=0)
    states: States = [np.zeros((2, size), np.float32), np.zeros((1, 2), np.float32), np.array([[0.0], [0.5]])]
    answers, moved = run(values, None, states)
    expected = [100 * first + last for first, last in zip(firsts, (3, 6, 9), strict=True)]
    assert answers[0, :, 0].tolist() == expected
    assert answers[1, :, 0].tolist() == [number + 0.5 for number in expected]
    assert moved[0].tolist() == [[5, 6, 7, 8, 9][-size:]] * 2
    assert moved[2].tolist() == [[0], [0.5]]
    assert states[0].tolist() == [[0] * size] * 2  # what was given is as it was
    assert len(graph.given) == (6 if rows_alone else 3)  # one step a run, and one row where they are alone


def test_state_without_a_batch_axis_is_given_as_it_is():
    signature = Signature(
        "alone",
        channels(1),
        channels(1),
        (State("s", "s_out", (-1, 2), 0, is_unbatched=True),),
        inputs=(Port("x", (1,), batch_axis=None, time_axis=None),),
        answers=(Port("y", (1,), batch_axis=None, time_axis=None),),
        rows_alone=True,
    )

    def answer(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert feeds["x"].shape == (1,)
        assert feeds["s"].shape == (2,)
        return {"y": feeds["x"] + feeds["s"][:1], "s_out": feeds["s"] + feeds["x"]}

    run, _ = run_of(signature, answer)
    answers, states = run(
        np.array([[[1]], [[5]]], np.float32), None, [np.array([[0, 1], [2, 3]], np.float32)]
    )
    assert answers.ravel().tolist() == [1, 7]
    assert states[0].tolist() == [[1, 2], [7, 8]]


def test_single_numbers_without_any_axis_stay_single_numbers():
    signature = Signature(
        "scalar",
        channels(1),
        channels(1),
        (State("s", "s_out", (-1,), 0, is_unbatched=True),),
        inputs=(Port("x", (), batch_axis=None, time_axis=None),),
        answers=(Port("y", (), batch_axis=None, time_axis=None),),
        rows_alone=True,
    )

    def answer(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert feeds["x"].shape == feeds["s"].shape == ()
        total = np.asarray(feeds["x"] + feeds["s"])
        return {"y": total, "s_out": total}

    run, _ = run_of(signature, answer)
    answers, states = run(np.array([[[1], [2]], [[5], [6]]], np.float32), None, [np.array([10, 20], "f4")])
    assert answers.tolist() == [[[11], [13]], [[25], [31]]]
    assert states[0].tolist() == [13, 31]


@pytest.mark.parametrize("rows_alone", [False, True])
@pytest.mark.parametrize(("counts", "expected"), [(None, [2, 2]), ([1, 2], [1, 2])])
def test_lengths_go_along_where_the_graph_takes_them(
    counts: list[int] | None, expected: list[int], *, rows_alone: bool
):
    signature = Signature(
        "lens",
        channels(1),
        channels(1),
        (),
        inputs=(Port("x", (1,), batch_axis=1, time_axis=0),),
        answers=(Port("y", (1,), batch_axis=1, time_axis=0),),
        sequence_lens="lens",
        rows_alone=rows_alone,
    )
    run, graph = run_of(signature, lambda feeds: {"y": feeds["x"]})
    given = None if counts is None else np.array(counts, np.int32)
    answers, _ = run(np.ones((2, 2, 1), np.float32), given, [])
    assert answers.shape == (2, 2, 1)
    seen = [length for feeds in graph.given for length in feeds["lens"].tolist()]
    assert seen == expected
