"""The bench: its rivals answer right, its load speaks the contract, its report says what was measured.

No speed is asserted. The load client needs g++, pkg-config and gRPC's C library: without them its tests skip.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from longshort.v1 import sequence_pb2, sequence_pb2_grpc, types_pb2
from oracle import OracleModel

from bench import cases, claims, document, load_client, measure, report, results
from bench.cases import LARGE, SMALL, Case
from bench.measured import Measured
from bench.million import Million, Phase
from bench.plot import plot
from bench.processes import Server, server

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = (1.0, -2.0, 0.5, 7.0)
RUN = Measured(
    seconds=2.0,
    messages=1000,
    steps=1000,
    p50_us=100.0,
    p99_us=200.0,
    p999_us=400.0,
    max_us=900.0,
    server_cpu_s=0.05,
    client_cpu_s=0.01,
)


def oracle_answers(values: tuple[float, ...]) -> list[np.ndarray]:
    """Return what onnxruntime says when it is stepped by hand, from the start."""
    model = OracleModel(measure.model_file(SMALL))
    states, answers = model.initial_states(), []
    for value in values:
        answer, states = model.run_one(np.array([value], np.float32), states)
        answers.append(answer)
    return answers


# -- the rivals


def ask(address: str, requests: list[sequence_pb2.StreamRequest]) -> list[sequence_pb2.StreamResponse]:
    with grpc.insecure_channel(address) as channel:
        return list(sequence_pb2_grpc.SequenceServiceStub(channel).Stream(iter(requests), timeout=20))


def message(*values: float) -> sequence_pb2.StreamRequest:
    answers = types_pb2.ANSWERS_LAST if len(values) > 1 else types_pb2.ANSWERS_ALL
    return sequence_pb2.StreamRequest(values=sequence_pb2.Values(values=values, answers=answers))


OPEN = sequence_pb2.StreamRequest(open=sequence_pb2.Open(session=types_pb2.SessionKey(id="s"), model="m"))


@pytest.mark.parametrize("rival", [cases.THREADS, cases.ASYNCIO])
def test_a_naive_service_answers_each_stream_as_onnxruntime_does_alone(rival):
    with server(measure.rival(Case(rival, SMALL, 1))) as running:
        for _ in range(2):
            opened, *answers = ask(running.address, [OPEN, *map(message, VALUES)])
            assert opened.HasField("opened")
            for got, expected in zip(answers, oracle_answers(VALUES), strict=True):
                assert np.array_equal(np.array(got.answer.values, np.float32), expected)


def test_the_service_of_windows_answers_each_message_from_the_start():
    with server(measure.rival(Case(cases.WINDOW, SMALL, 1))) as running:
        _, *answers = ask(running.address, [OPEN, message(*VALUES), message(*VALUES)])
    for got in answers:
        assert np.allclose(got.answer.values, oracle_answers(VALUES)[-1], rtol=1e-6)


@pytest.mark.parametrize("rival", [cases.ECHO, cases.ECHO_AIO])
def test_an_echo_gives_back_what_it_gets(rival):
    with server(measure.rival(Case(rival, SMALL, 1))) as running:
        sent = [OPEN, *map(message, VALUES)]
        assert [got.SerializeToString() for got in ask(running.address, sent)] == [
            request.SerializeToString() for request in sent
        ]


def test_bare_onnxruntime_is_measured_without_a_server():
    measured = measure.measure(Case(cases.BARE, SMALL, 4), 0.05)
    assert measured.steps == 4 * measured.messages > 0
    assert measured.server_cpu_s > 0


def test_a_rival_that_does_not_start_says_why():
    with (
        pytest.raises(RuntimeError, match=r"nowhere\.onnx"),
        server(["bench.rivals.naive_threads", "nowhere.onnx"]),
    ):
        pass


# -- the load client


@pytest.fixture(scope="session")
def load() -> None:
    """Build the load client, or skip."""
    try:
        load_client.build()
    except load_client.NoCompiler as error:
        if os.environ.get("LONGSHORT_REQUIRE_ALL") == "1":
            pytest.fail(f"{error}; nothing may skip")
        pytest.skip(str(error))


@pytest.mark.usefixtures("load")
def test_a_closed_loop_steps_sessions_of_the_real_service():
    """Its messages are numbered, so that one lost, repeated or out of order would be an error."""
    with server(measure.service(SMALL)) as running:
        measured = load_client.stream_load(running, streams=20, channels=3, settle_s=0.1, seconds=0.3)
    assert (measured.opened, measured.served, measured.errors) == (20, 20, {})
    assert measured.steps == measured.messages > 20
    assert 1 <= measured.least_answers <= measured.most_answers
    assert 0 < measured.p50_us <= measured.p99_us <= measured.p999_us <= measured.max_us
    assert measured.server_cpu_s > 0
    assert measured.client_cpu_s > 0
    assert measured.resident_bytes > 1 << 20


@pytest.mark.usefixtures("load")
def test_an_open_loop_keeps_its_rate_and_its_streams_take_turns():
    with server(measure.rival(Case(cases.ECHO_AIO, SMALL, 1))) as running:
        measured = load_client.stream_load(running, streams=10, rate=200, settle_s=0.1, seconds=0.5)
    assert (measured.served, measured.errors) == (10, {})
    assert 75 <= measured.messages <= 125
    assert measured.most_answers - measured.least_answers <= 10


@pytest.mark.usefixtures("load")
def test_a_message_may_hold_many_steps_without_answers():
    with server(measure.service(SMALL)) as running:
        measured = load_client.stream_load(running, steps=500, answers=3, settle_s=0, seconds=60, messages=4)
    assert (measured.messages, measured.steps, measured.errors) == (4, 2000, {})


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"model": "other"}, "status 5 no model 'other'"), ({"method": "/no.Such/Method"}, "status 12")],
)
def test_streams_that_are_refused_are_told_by_their_reason(wrong, reason):
    with server(measure.service(SMALL)) as running, pytest.raises(RuntimeError, match=reason):
        load_client.stream_load(running, streams=2, ramp_timeout_s=5, settle_s=0, seconds=0.1, **wrong)


class FrameNotes(sequence_pb2_grpc.SequenceServiceServicer):
    """Answers frames without a model and notes what came."""

    def __init__(self) -> None:
        self.opened: dict[int, str] = {}
        self.frames: list[tuple[list[int], list[int], int]] = []

    def StreamFrames(self, request_iterator, context) -> Iterator[sequence_pb2.StreamFramesResponse]:  # noqa: N802
        del context
        for frame in request_iterator:
            self.opened |= {each.handle: each.open.session.id for each in frame.opens}
            if frame.handles:
                self.frames.append((list(frame.handles), list(frame.steps), len(frame.values)))
            opened = [sequence_pb2.FrameOpened(handle=each.handle) for each in frame.opens]
            steps = [step + 1 for step in frame.steps]
            yield sequence_pb2.StreamFramesResponse(opened=opened, handles=frame.handles, steps=steps)


@pytest.mark.usefixtures("load")
def test_frames_open_all_sessions_and_step_them_in_turn():
    notes = FrameNotes()
    peer = grpc.server(ThreadPoolExecutor(1))
    sequence_pb2_grpc.add_SequenceServiceServicer_to_server(notes, peer)
    target = f"127.0.0.1:{peer.add_insecure_port('127.0.0.1:0')}"
    peer.start()
    try:
        options = {
            "method": measure.FRAMES_METHOD,
            "sessions": 2500,
            "rows": 1000,
            "messages": 4,
            "settle_s": 0,
        }
        command = [str(load_client.build()), f"--target={target}", *load_client.flags(options)]
        measured = load_client.run(command, Server(os.getpid(), {}))
    finally:
        peer.stop(None)
    assert measured.errors == {}
    assert measured.steps == 4 * 1000
    assert sorted(notes.opened) == list(range(2500))
    assert len(set(notes.opened.values())) == 2500
    # The first frame proves that the stream works; those measured go on from it, and a part of a block never steps.
    first, second = list(range(1000)), list(range(1000, 2000))
    assert notes.frames == [
        (handles, [step] * 1000, 1000)
        for handles, step in ((first, 0), (second, 0), (first, 1), (second, 1), (first, 2))
    ]


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("rival", [cases.FRAMES, cases.GATEWAY_ARRAYS, cases.GATEWAY_CALLS])
def test_many_sessions_are_stepped_by_few_messages(rival):
    measured = measure.measure(Case(rival, SMALL, 50), 0.2)
    a_message = 1 if rival == cases.GATEWAY_CALLS else 50
    assert measured.steps == measured.messages * a_message > 0
    assert measured.errors == {}


@pytest.mark.usefixtures("load")
def test_live_sessions_are_measured_beside_a_replay():
    measured = measure.measure(Case(cases.LONGSHORT, SMALL, 10, "replay", 100.0), 0.3)
    assert measured.served == 10
    assert measured.replayed_per_s > 0


# -- the cases and the report


def test_every_profile_measures_each_case_once():
    for profile in cases.profiles().values():
        assert len(set(profile.cases)) == len(profile.cases)
        assert profile.cases or profile.million


def some_results() -> results.Results:
    """Return two repetitions of a few cases, longshort twice as fast as naive asyncio and a fifth of its CPU."""
    found = results.Results("quick", measure_machine(), 2.0, duration_s=90.0)
    slow = replace(RUN, steps=500, server_cpu_s=0.125)
    load = (SMALL, cases.LIGHT_CLIENTS, "open", cases.LIGHT_RATE)
    for sessions in (1, 128):
        found.runs[Case(cases.LONGSHORT, SMALL, sessions)] = [RUN, replace(RUN, steps=1200)]
        found.runs[Case(cases.ASYNCIO, SMALL, sessions)] = [slow, replace(slow, steps=600)]
    found.runs[Case(cases.LONGSHORT, *load)] = [RUN, RUN]
    found.runs[Case(cases.ASYNCIO, *load)] = [slow, slow]
    found.runs[Case(cases.BARE, LARGE, 1024)] = [RUN, RUN]
    phase = Phase(seconds=4.0, cpu_us_each=3.0)
    found.millions.append(Million(RUN, replace(RUN, server_cpu_s=0.1), 900.0, phase, phase, phase))
    found.failures.append("longshort, frames: nothing was answered")
    return found


def measure_machine() -> dict[str, object]:
    from bench.machine import machine

    return machine()


def test_results_survive_their_way_through_json(tmp_path):
    found = some_results()
    results.write(tmp_path / "sub" / "bench.json", found)
    assert results.read(tmp_path / "sub" / "bench.json") == found


def test_claims_are_ratios_within_one_repetition_and_say_whether_they_hold():
    rows = {claim.words: claim for claim in claims.claims(some_results())}
    faster = rows["128 clients: steps/s over those of naive asyncio"]
    assert (faster.found.middle, faster.found.least, faster.found.most, faster.holds) == (2.0, 2.0, 2.0, True)
    lighter = rows["lightly loaded: server CPU a step over that of naive asyncio"]
    assert lighter.found.middle == pytest.approx(0.2)
    assert lighter.holds
    slower = rows["lightly loaded: p99 over that of naive asyncio"]
    assert slower.found.middle == 1.0
    assert not slower.holds
    assert not rows["a million sessions: server CPU a step over that with a thousand"].holds
    assert not any(words.startswith("frames") for words in rows)  # they were not measured


def test_the_report_has_every_case_and_what_failed():
    text = report.report(some_results())
    assert "| naive asyncio " in text
    assert "hidden 256, layers 2" in text
    assert "550 (500 to 600)" in text  # steps/s of longshort, middle and ends
    assert "| pass " in text
    assert "| short " in text
    assert "- longshort, frames: nothing was answered" in text
    assert "1,000,000 sessions" in text


def test_the_picture_is_drawn(tmp_path):
    plot(tmp_path / "bench.png", some_results())
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_the_page_of_benchmarks_takes_new_results():
    page = document.PAGE.read_text()
    once = document.with_results(page, "new figures")
    assert document.with_results(once, "new figures") == once
    assert once.partition(document.BEGIN)[0] == page.partition(document.BEGIN)[0]
    assert once.partition(document.END)[2] == page.partition(document.END)[2]
    with pytest.raises(ValueError):
        document.with_results("a page without marks", "new figures")


def test_the_page_of_benchmarks_names_every_profile():
    text = document.PAGE.read_text()
    assert all(f"BENCH={name}" in text for name in cases.profiles())


def test_the_makefile_knows_the_debian_packages():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert all(name in makefile for name in load_client.DEBIAN.partition("install ")[2].split())
