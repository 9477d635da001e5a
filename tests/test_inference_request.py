"""What a request of the Open Inference Protocol says beside its tensors: which sequence, and which session that is."""

from __future__ import annotations

from typing import Any

import pytest
from longshort_service import errors
from longshort_service.handlers.inference_request import Place, place, version
from longshort_service.inference import inference_pb2 as pb
from longshort_service.record import SESSION_ID
from open_inference import fill


def request_of(model: str = "metro", **parameters: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    fill(request, parameters)
    return request


@pytest.mark.parametrize(
    "parameters", [{}, {"sequence": 0}, {"sequence": ""}, {"sequence": 0, "start": False}]
)
def test_without_an_id_there_is_no_sequence(parameters: dict[str, Any]):
    assert place(request_of(**parameters)) is None


@pytest.mark.parametrize(
    ("sequence", "session_id"),
    [
        (7, "oip/metro/u/7"),
        (-1, "oip/metro/u/18446744073709551615"),  # how clients send a number of 64 bits without a sign
        ("7", "oip/metro/s/7"),
        ("road a/b", "oip/metro/s/road%20a/b"),
        ("100%", "oip/metro/s/100%25"),
        ("straße", "oip/metro/s/stra%C3%9Fe"),
        ("a\n\0", "oip/metro/s/a%0A%00"),
    ],
)
def test_sequence_is_a_session_whose_id_can_be_found_by_hand(sequence: int | str, session_id: str):
    found = place(request_of(sequence=sequence, start=True))
    assert found == Place(session_id, is_start=True, is_end=False, step=None)
    assert SESSION_ID.fullmatch(session_id)


def test_numbers_without_a_sign_and_their_twins_with_one_are_the_same_sequence():
    request = request_of()
    request.parameters["sequence_id"].uint64_param = 2**64 - 1
    found = place(request)
    assert found is not None
    assert found == place(request_of(sequence=-1))


def test_sequences_of_two_models_do_not_meet_whatever_their_names():
    names = [("a", "s/x"), ("a/s", "x"), ("a%2Fs", "x"), ("a", "u/1")]
    found = {place(request_of(model, sequence=text)) for model, text in names}
    assert len(found) == len(names)


def test_step_number_is_read_and_a_start_is_at_zero():
    numbered = place(request_of(sequence=1, step=5, end=True))
    assert numbered == Place("oip/metro/u/1", is_start=False, is_end=True, step=5)
    request = request_of(sequence=1)
    request.parameters["sequence_step"].uint64_param = 2**40
    large = place(request)
    assert large is not None
    assert large.step == 2**40
    started = place(request_of(sequence=1, step=0, start=True))
    assert started is not None
    assert started.step == 0
    with pytest.raises(errors.InvalidMessage, match="sequence_step 0, not 3"):
        place(request_of(sequence=1, step=3, start=True))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"start": True}, "need a sequence_id"),
        ({"sequence": 0, "end": True}, "need a sequence_id"),
        ({"sequence": True}, "sequence_id must be a whole number, not bool_param"),
        ({"sequence": 1.5}, "sequence_id must be a whole number"),
        ({"sequence": 1, "start": 1}, "sequence_start must be a bool_param"),
        ({"sequence": 1, "end": "yes"}, "sequence_end must be a bool_param"),
        ({"sequence": 1, "step": -1}, "steps are counted from 0"),
        ({"sequence": 1, "step": "1"}, "sequence_step must be a whole number"),
    ],
)
def test_what_means_nothing_is_refused(parameters: dict[str, Any], words: str):
    with pytest.raises(errors.InvalidMessage, match=words):
        place(request_of(**parameters))


def test_empty_parameter_is_refused():
    request = request_of()
    request.parameters["sequence_id"].SetInParent()
    with pytest.raises(errors.InvalidMessage, match="not nothing"):
        place(request)


def test_sequence_that_makes_no_session_id_is_refused():
    assert place(request_of(sequence="x" * 244)) is not None
    with pytest.raises(errors.InvalidSessionId, match="more than 256 characters"):
        place(request_of(sequence="x" * 245))


@pytest.mark.parametrize(("model", "sequence"), [("metro", "é" * 257), ("é" * 257, 1), ("é" * 257, "x")])
def test_text_that_is_too_long_is_refused_before_it_is_escaped(
    monkeypatch: pytest.MonkeyPatch, model: str, sequence: int | str
):
    escaped: list[str] = []
    monkeypatch.setattr(
        "longshort_service.handlers.inference_request.quote", lambda text, **_: escaped.append(text) or text
    )
    with pytest.raises(errors.InvalidSessionId, match="more than 256 characters"):
        place(request_of(model, sequence=sequence))
    assert max(map(len, escaped), default=0) <= 256


@pytest.mark.parametrize(("text", "number"), [("", 0), ("-1", 0), ("3", 3), ("007", 7)])
def test_version_is_a_whole_number_or_whichever_serves(text: str, number: int):
    assert version(text) == number


@pytest.mark.parametrize("text", ["0", "-2", "1.0", "latest", "٣", "9" * 19])
def test_other_versions_mean_nothing(text: str):
    with pytest.raises(errors.InvalidMessage, match="is no version"):
        version(text)
