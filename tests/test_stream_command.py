"""`longshort stream` in pipes, with signals, against the real service."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from longshort_model.replay import Replay
from longshort_model.synthetic import write_random_model
from longshort_service.signature import MissingValue
from program import NOWHERE, PROGRAM, at_step, longshort, new_id, start, the_line
from told import write_speaker


def test_stream_answers_each_value_to_the_bit_as_the_model_file_does(server, repository):
    values = np.random.default_rng(3).normal(size=700).astype(np.float32)  # more than one message
    text = "".join(f"{value}\n" for value in values)
    done = longshort(
        "stream", "--model", "metro", "--session", new_id(), "--address", server.address, text=text
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [[np.float32(cell) for cell in line.split(",")] for line in done.stdout.splitlines()]
    expected = Replay(repository / "metro" / "1" / "model.onnx").run(values.reshape(1, -1, 1))["y"][0]
    assert np.array_equal(np.array(answers), expected)


def test_stream_in_a_pipe_answers_each_value_before_the_next_is_sent(server):
    process = start("stream", "-m", "metro", "-s", new_id(), "--address", server.address)
    with process:
        for value in ("0.5", "nan", "0.25"):
            process.stdin.write(f"{value}\n")
            process.stdin.flush()
            assert process.stdout.readline().count(",") == 2
        process.stdin.close()
        assert process.wait(10) == 0


def test_stream_goes_on_where_the_session_is_and_says_what_id_a_new_one_got(server):
    session_id = new_id()
    flags = ("--format", "json", "--address", server.address)
    assert longshort("stream", "-m", "metro", "-s", session_id, *flags, text="1\n2\n").returncode == 0
    more = longshort("stream", "-s", session_id, *flags, text="3\n")  # its model is known by now
    assert json.loads(more.stdout)["step"] == 2
    again = longshort("stream", "-m", "metro", "-s", session_id, "--mode", "create", *flags, text="3\n")
    assert again.returncode == 2
    assert "SESSION_EXISTS" in the_line(again)
    anonymous = longshort("stream", "-m", "metro", "--version", "1", *flags, text="1\n")
    assert at_step(anonymous.stderr.removeprefix("session ").strip(), server) == 1


def test_stream_moves_a_session_to_another_model_version_where_it_is_told_to(start_server, tmp_path):
    for version in (1, 2):
        write_random_model(tmp_path / f"metro/{version}/model.onnx", name="metro", hidden=4, seed=version)
    server = start_server(models=tmp_path)
    flags = ("-m", "metro", "-s", "s", "--format", "json", "--address", server.address)
    longshort("stream", *flags, "--version", "1", text="1\n2\n")
    refused = longshort("stream", *flags, "--version", "2", text="3\n")
    assert "MODEL_MISMATCH" in the_line(refused)
    anew = longshort("stream", *flags, "--version", "2", "--model-change", "reset", text="3\n")
    assert json.loads(anew.stdout)["step"] == 0


def test_stream_begins_a_session_in_what_files_hold(start_server, tmp_path):
    write_speaker(tmp_path / "models" / "speaker" / "1" / "model.onnx")
    at = ("-m", "speaker", "--address", start_server(models=tmp_path / "models").address)
    voice, both = tmp_path / "voice.npy", tmp_path / "both.npz"
    np.save(voice, np.array([100, 2.5]))
    np.savez(both, who=np.array([200, 2.5]), s0=np.array([5], np.float32))
    assert longshort("stream", *at, "--initial", f"who={voice}", text="1\n2\n").stdout == "101.0\n103.0\n"
    assert longshort("stream", *at, "--initial", str(both), text="1\n2\n").stdout == "206.0\n208.0\n"
    missing = longshort("stream", *at, text="1\n")
    assert (missing.returncode, "CONSTANT_MISSING" in the_line(missing)) == (2, True)
    (tmp_path / "text.npy").write_text("1, 2")
    for flags, said in (
        (["--initial", str(voice)], "holds one array: say which state it is"),
        (["--initial", f"who={both}"], "holds arrays by name"),
        (["--initial", f"who={tmp_path}/none.npy"], "No such file"),
        (["--initial", f"who={tmp_path}/text.npy"], "is no file of NumPy arrays"),
        (["--initial", str(both), "--initial", f"who={voice}"], "gives who twice"),
        (["--initial", f"whom={voice}"], "WRONG_SHAPE"),
    ):
        refused = longshort("stream", *at, *flags, text="1\n")
        assert (refused.returncode, said in the_line(refused)) == (2, True), refused.stderr


def test_stream_finds_columns_by_the_names_in_a_header_and_writes_one(server):
    text = '\ufefftime,x2,x0,note,x1\n\n#,"a comment\n08:00,3,1,a,2\n08:30,,1,b,nan\n'
    flags = ("--model", "wide", "--address", server.address)
    done = longshort("stream", "-s", new_id(), *flags, text=text)
    plain = longshort("stream", "-s", new_id(), *flags, text="1,2,3\n1,NA,null\n")
    assert (done.returncode, plain.returncode) == (0, 0)
    assert done.stdout == "y0,y1\n" + plain.stdout


def test_stream_writes_json_by_name_with_the_step(server):
    flags = ("--format", "json", "--address", server.address)
    done = longshort("stream", "-m", "metro", "-s", new_id(), *flags, text="x0\n1\n2")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert list(first) == ["step", "median", "q10", "q90"]
    assert (first["step"], second["step"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "said", "applied"),
    [
        ("1\n2\nthree\n4\n", "line 3: 'three' is no number; 2 values were applied", 2),
        ("1\n2,3\n", "line 2: 2 cells in place of 1 (x0); 1 value was applied", 1),
        ("1\n2_0\n", "line 2: '2_0' is no number; 1 value was", 1),
        ("1\n1e39\n", "line 2: '1e39' is not a finite 32-bit number", 1),
        ("1\ninf\n", "line 2: 'inf' is not a finite", 1),
        ('1\n"2\n', "line 2: unexpected end of data", 1),
    ],
)
def test_stream_names_the_line_that_will_not_do_and_what_came_before_it(server, text, said, applied):
    session_id = new_id()
    done = longshort("stream", "-m", "metro", "-s", session_id, "--address", server.address, text=text)
    assert done.returncode == 2
    assert said in the_line(done)
    assert f"session {session_id} is at step {applied}" in done.stderr
    assert len(done.stdout.splitlines()) == applied
    assert at_step(session_id, server) == applied


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1_000\n", "line 1: no number, and"),
        ("# counts\n\ncounts\n1\n", "line 3: no number, and as a header it must name 'x0'"),
        ("200,1\n", "line 1: 2 cells in place of 1 (x0)"),
        ("nan\n1\n", "line 1: VALUE_MISSING"),
    ],
)
def test_stream_refused_at_its_first_value_leaves_no_new_session_behind(server, text, said):
    session_id = new_id()
    flags = ("-m", "metro", "-s", session_id, "--address", server.address)
    done = longshort("stream", *flags, text=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in the_line(done)
    assert f"; no value was applied, session {session_id} was not kept\n" in done.stderr
    assert "SESSION_NOT_FOUND" in longshort("sessions", "get", session_id, *flags[4:]).stderr
    longshort("stream", *flags, text="1\n")
    longshort("sessions", "reset", session_id, *flags[4:])
    again = longshort("stream", *flags, text="200,1\n")  # not made by this call: it stays
    assert f"0 values were applied before it, session {session_id} is at step 0" in the_line(again)
    assert at_step(session_id, server) == 0


@pytest.mark.parametrize("how", ["reset", "delete"])
def test_stream_that_loses_its_session_says_where_it_was(server, how):
    session_id = new_id()
    flags = ("-m", "metro", "-s", session_id, "--address", server.address)
    with start("stream", *flags) as process:
        process.stdin.write("1\n")
        process.stdin.flush()
        process.stdout.readline()
        assert longshort("sessions", how, session_id, "--address", server.address).returncode == 0
        process.stdin.write("2\n")
        process.stdin.flush()
        assert process.wait(20) in {1, 2}
        assert f"session {session_id} was at step 1 when it was lost" in process.stderr.read()
        process.stdin.close()


def test_stream_of_a_session_that_is_not_there_says_how_to_create_it(server):
    done = longshort("stream", "-s", new_id(), "--address", server.address, text="1\n")
    assert done.returncode == 2
    assert "SESSION_NOT_FOUND" in the_line(done)
    assert done.stderr.endswith("; to create it, give --model\n")


def test_stream_names_the_line_that_the_service_refuses_among_many(start_server, tmp_path):
    write_random_model(tmp_path / "strict/1/model.onnx", name="strict", hidden=4, missing=MissingValue.REJECT)
    address = start_server(models=tmp_path).address
    text = "1\n" * 9 + "nan\n" + "1\n" * 9
    done = longshort("stream", "-m", "strict", "--session", "s", "--address", address, text=text)
    assert "line 10: VALUE_MISSING" in the_line(done)
    assert "9 values were applied before it, session s is at step 9" in done.stderr
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 9)


def test_stream_takes_no_value_twice_where_the_service_takes_few_steps_a_message(start_server, tmp_path):
    write_random_model(tmp_path / "strict/1/model.onnx", name="strict", hidden=4, missing=MissingValue.REJECT)
    server = start_server("--max-steps", "2", models=tmp_path)
    text = "1\n2\n3\nnan\n5\n"
    done = longshort("stream", "-m", "strict", "-s", "s", "--address", server.address, text=text)
    assert "line 4: VALUE_MISSING" in the_line(done)
    assert "3 values were applied before it, session s is at step 3" in done.stderr
    answers = [[np.float32(cell) for cell in line.split(",")] for line in done.stdout.splitlines()]
    values = np.array([1, 2, 3], np.float32).reshape(1, -1, 1)
    assert np.array_equal(np.array(answers), Replay(tmp_path / "strict/1/model.onnx").run(values)["y"][0])
    assert at_step("s", server) == 3


def test_stream_refuses_what_is_no_text(server):
    flags = ("-m", "metro", "-s", new_id(), "--address", server.address)
    done = subprocess.run(
        [*PROGRAM, "stream", *flags], input=b"\xff\xfe\n", capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert b"line 1: not UTF-8" in done.stderr
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            [*PROGRAM, "stream", *flags], stdin=endless, capture_output=True, timeout=30, check=False
        )
    assert done.returncode == 2
    assert b"the input is no text" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "nope", "--session", "s"), "MODEL_NOT_FOUND"),
        (("--model", "metro", "--version", "7"), "MODEL_NOT_FOUND"),
        (("--session", "cli-nope"), "SESSION_NOT_FOUND"),
        (("--model", "metro", "--session", "cli-nope", "--mode", "open"), "SESSION_NOT_FOUND"),
        (("--model", "metro", "--session", "two words"), "INVALID_SESSION_ID"),
    ],
)
def test_stream_of_what_is_not_there_is_the_callers_mistake(server, flags, said):
    done = longshort("stream", *flags, "--address", server.address, text="1\n")
    assert done.returncode == 2
    assert said in the_line(done)


def test_stream_without_a_service_fails_soon_with_exit_code_one():
    begin_s = time.monotonic()
    done = longshort("stream", "-m", "metro", "--address", NOWHERE, text="1\n")
    assert done.returncode == 1
    assert f"no service answers at {NOWHERE}" in the_line(done)
    assert time.monotonic() - begin_s < 15


def test_stream_whose_service_dies_says_what_may_have_been_applied(start_server):
    server = start_server()
    flags = ("-m", "metro", "-s", "s", "--address", server.address, "--timeout", "1")
    with start("stream", *flags) as process:
        process.stdin.write("1\n")
        process.stdin.flush()
        process.stdout.readline()
        server.process.kill()
        server.process.wait()
        process.stdin.write("2\n")
        process.stdin.flush()
        assert process.wait(20) == 1
        line = process.stderr.read()
        process.stdin.close()
    assert line.startswith(f"Error: no service answers at {server.address}")
    assert "; 1 value was applied before it, session s is at step 1" in line
    assert line.count("\n") == 1


def test_stream_without_standard_input_is_the_callers_mistake():
    command = shlex.join([*PROGRAM, "stream", "--model", "metro", "--address", NOWHERE])
    done = subprocess.run(["sh", "-c", f"{command} 0<&-"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "standard input is closed" in the_line(done)


def test_stream_ends_quietly_when_its_reader_goes_away(server):
    with start("stream", "-m", "metro", "-s", new_id(), "--address", server.address) as process:
        process.stdout.close()
        process.stdin.write("1\n")
        process.stdin.flush()
        assert process.wait(10) == 141
        assert process.stderr.read() == ""
        process.stdin.close()


def test_control_c_ends_a_stream_quietly_and_the_session_lives_on(server):
    session_id = new_id()
    with start("stream", "-m", "metro", "-s", session_id, "--address", server.address) as process:
        process.stdin.write("1\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == ""
    assert at_step(session_id, server) == 1
