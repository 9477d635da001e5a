"""What a model file promises: kept whole over its JSON form, and refused where it contradicts itself."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort_service.ports import Port
from longshort_service.signature import (
    Channel,
    Constant,
    Feedback,
    Memory,
    MissingValue,
    Signature,
    SignatureError,
    State,
)
from longshort_service.signature_json import from_json, to_json

GOOD: dict[str, Any] = {
    "name": "metro",
    "features": (Channel("traffic", "vehicles/h"), Channel("rain", "mm")),
    "outputs": (Channel("median", "vehicles/h"), Channel("q10", quantile=0.1)),
    "states": (State("c0", "cn", (1, -1, 4), 1, memory=Memory.LONG_TERM), State("h0", "hn", (-1, 4), 0, 0.5)),
    "forecast": (Feedback("median", "traffic"),),
}


def signature(**changes: Any) -> Signature:
    return Signature(**(GOOD | changes))


@given(
    missing=st.sampled_from(MissingValue),
    step_s=st.none() | st.floats(1e-3, 1e6),
    scores=st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    description=st.text(max_size=30),
    sequence_lens=st.none() | st.just("sequence_lens"),
)
def test_json_form_says_the_same(**fields: Any):
    written = signature(**fields, trained_on="metro_traffic", fingerprint="ab", state_family="metro-lstm")
    assert from_json(to_json(written)) == written


def test_unknown_keys_are_ignored_so_that_older_services_read_newer_files():
    raw = json.loads(to_json(signature())) | {"novelty": {"a": 1}}
    assert from_json(json.dumps(raw)) == signature()


def test_what_is_left_out_has_its_default():
    raw = json.loads(to_json(signature()))
    for name in (
        "description",
        "input",
        "output",
        "sequence_lens",
        "missing",
        "step_s",
        "scores",
        "fingerprint",
        "state_family",
    ):
        del raw[name]
    assert from_json(json.dumps(raw)) == signature()


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"features": ()},
        {"outputs": ()},
        {"features": (Channel("a"), Channel("a"))},
        {"outputs": (Channel("a"), Channel("a"))},
        {"states": (State("h", "hn", (-1, 4), 0), State("h", "cn", (-1, 4), 0))},
        {"states": (State("h", "hn", (-1, 4), 0), State("c", "hn", (-1, 4), 0))},
        {"states": (State("h", "hn", (1, 4), 0),)},
        {"states": (State("h", "hn", (-1, 4), 1),)},
        {"states": (State("h", "hn", (-1, 4), 2),)},
        {"states": (State("h", "hn", (4, -1), -1),)},
        {"states": (State("h", "hn", (-1, -1), 0),)},
        {"states": (State("h", "hn", (-1, 0), 0),)},
        {"forecast": (Feedback("median", "snow"),)},
        {"forecast": (Feedback("mean", "traffic"),)},
        {"forecast": (Feedback("median", "traffic"), Feedback("q10", "traffic"))},
        {"inputs": (Port("x", (3,)),)},
        {"inputs": (Port("x", (2,)), Port("x", ()))},
        {"inputs": (Port("x", (2,), "int8"),)},
        {"inputs": (Port("x", (2,), batch_axis=1),)},
        {"inputs": (Port("x", (2,), batch_axis=3),)},
        {"inputs": (Port("x", (2,), time_axis=-1),)},
        {"inputs": (Port("x", (2, -1)), Port("z", (4,)))},
        {"answers": (Port("y", (1,)),)},
        {"answers": (Port("y", (1,)), Port("y", (1,)))},
        {"constants": (Constant("x", (), "int64"),)},
        {"constants": (Constant("rate", (), "bool"),)},
        {"states": (State("h", "hn", (-1, 4), 0, dtype="string"),)},
        {"states": (State("x.window", "", (-1, 4), 0, window_of="x"),)},  # x has a time axis
        {"states": (State("z.window", "", (-1, 4), 0, window_of="z"),)},
        {"inputs": (Port("x", (2,), "int64"),), "missing": MissingValue.REPEAT_LAST, "forecast": ()},
        {"inputs": (Port("x", (2,), "int64"),)},  # the forecast feeds it
    ],
    ids=str,
)
def test_signature_that_contradicts_itself_is_refused(change: dict[str, Any]):
    with pytest.raises(SignatureError):
        signature(**change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 2, "name": "x"}',
        to_json(signature())[:-1],
        to_json(signature()).replace("REJECT", "IGNORE"),
        to_json(signature()).replace("long_term", "mid_term"),
        to_json(signature()).replace('"batch_axis": 1', '"batch_axis": "one"'),
    ],
)
def test_damaged_json_is_refused(text: str):
    with pytest.raises(SignatureError):
        from_json(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_other_json_is_refused_and_nothing_else_is_raised(raw: object):
    with pytest.raises(SignatureError):
        from_json(json.dumps(raw))


@given(st.data())
def test_one_field_of_another_kind_is_refused_or_read(data: st.DataObject):
    raw = json.loads(to_json(signature()))
    name = data.draw(st.sampled_from(sorted(raw)))
    raw[name] = data.draw(st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none(), max_size=2))
    with contextlib.suppress(SignatureError):
        assert from_json(json.dumps(raw)).name


def test_names_of_a_plain_graph_are_those_of_its_ports():
    """What feeds it in the shortest way took its input for x, and a graph with another was run a row at a time."""
    channel = (Channel("a"),)
    signature = Signature(
        "m", channel, channel, (), inputs=(Port("load", (1,)),), answers=(Port("next", (1,)),)
    )
    assert signature.is_plain
    assert (signature.input, signature.output) == ("load", "next")
    assert from_json(to_json(signature)) == signature


def test_row_of_a_state_is_its_shape_without_the_batch():
    assert [state.row_shape() for state in signature().states] == [(1, 4), (4,)]


def test_family_of_states_names_them_in_order_with_their_shapes():
    family = signature(state_family="metro-lstm").family_of_states()
    assert family == "metro-lstm: 2 in, 2 out, c0 [1, -1, 4], h0 [-1, 4]"
    assert signature().family_of_states() == ""


@pytest.mark.parametrize(
    "change",
    [
        {"states": GOOD["states"][::-1]},
        {"states": (State("c0", "cn", (-1, 1, 4), 0), GOOD["states"][1])},
        {"states": (State("c0", "cn", (1, -1, 5), 1), GOOD["states"][1])},
        {"states": GOOD["states"][:1]},
        {"features": GOOD["features"][:1], "forecast": ()},
        {"outputs": GOOD["outputs"][:1]},
    ],
    ids=["other order", "other axis", "other size", "one of two", "fewer features", "fewer outputs"],
)
def test_what_is_not_alike_makes_another_family(change: dict[str, Any]):
    one, other = signature(state_family="f"), signature(**change, state_family="f")
    assert one.family_of_states() != other.family_of_states()


def test_model_forecasts_where_a_feature_is_fed():
    assert not signature(forecast=()).can_forecast
    half = signature()
    assert half.can_forecast
    assert [half.features[column].name for column in half.known_features()] == ["rain"]
    fed = signature(forecast=(Feedback("q10", "rain"), Feedback("median", "traffic")))
    assert fed.can_forecast
    assert fed.feedback_words() == ([1, 0], [1, 0])
    crossed = signature(forecast=(Feedback("median", "rain"), Feedback("q10", "traffic")))
    assert crossed.feedback_words() == ([0, 1], [1, 0])


GENERAL: dict[str, Any] = {
    "features": (Channel("a"), Channel("b"), Channel("n")),
    "inputs": (Port("x", (2,), batch_axis=1, time_axis=0), Port("count", (), "int64")),
    "answers": (Port("y", (2,), "float64"),),
    "states": (
        State("h", "hn", (1, -1, 4), 1, dtype="float16", initial_file="h.npy"),
        State("cache", "cache_out", (-1, 3), 0, is_unbatched=True),
        State("who", "", (-1, 8), 0),
    ),
    "forecast": (),
    "constants": (
        Constant("rate", (), "int64", 16000),
        Constant("table", (2, 2), "float32", file="table.npy"),
    ),
    "rows_alone": True,
    "single_steps": True,
}


def test_json_form_says_all_of_a_signature_that_is_not_plain():
    written = signature(**GENERAL)
    assert from_json(to_json(written)) == written
    assert not written.is_plain
    assert written.graph_inputs() == ["x", "count", "h", "cache", "who", "rate", "table"]
    assert [state.is_constant for state in written.states] == [False, False, True]


@pytest.mark.parametrize(
    ("change", "is_plain", "steps_alone"),
    [
        ({}, True, False),
        ({"inputs": (Port("x", (1,)), Port("z", (1,)))}, False, False),
        ({"inputs": (Port("x", (2,), batch_axis=1, time_axis=0),)}, False, False),
        ({"inputs": (Port("x", (2,), time_axis=None),)}, False, True),
        ({"answers": (Port("y", (2,), time_axis=None),)}, False, True),
        ({"answers": (Port("y", (2,), "float64"),), "forecast": ()}, False, False),
        ({"states": (State("h", "hn", (-1, 4), 0, dtype="float64"),)}, False, False),
        ({"states": (State("h", "", (-1, 4), 0),)}, False, False),
        ({"constants": (Constant("rate", (), "int64"),)}, False, False),
        ({"rows_alone": True}, False, False),
        ({"single_steps": True}, False, True),
    ],
    ids=str,
)
def test_only_rows_as_they_are_are_plain(change: dict[str, Any], *, is_plain: bool, steps_alone: bool):
    made = signature(**change)
    assert (made.is_plain, made.steps_alone) == (is_plain, steps_alone)


@pytest.mark.parametrize("what", ["inputs", "answers"])
def test_last_values_and_answers_of_other_dtypes_are_another_family(what: str):
    # A session keeps both as they lie in memory: those of another dtype are other numbers, and may be wider.
    families = {
        signature(state_family="f", forecast=(), **{what: (Port("p", (2,), dtype),)}).family_of_states()
        for dtype in ("float32", "float64", "int32")
    }
    assert len(families) == 3


def test_states_of_other_dtypes_are_another_family():
    families = {
        signature(state_family="f", states=(State("h", "hn", (-1, 4), 0, dtype=dtype),)).family_of_states()
        for dtype in ("float32", "float64", "int64")
    }
    assert len(families) == 3
