"""The command line as a shell meets it: real processes, pipes and signals, against the real service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path
from uuid import uuid4

import click
import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from longshort_model.replay import Replay
from longshort_model.synthetic import write_random_model
from longshort_service.cli import main
from longshort_service.config import options
from longshort_service.signature import MissingValue

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "service" / "longshort_service" / "models"
PROGRAM = (sys.executable, "-m", "longshort_service")
NOWHERE = "127.0.0.1:1"  # tcpmux: nobody listens there


def longshort(*arguments: str, text: str | None = None, env: dict[str, str] | None = None):
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | (env or {}),
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*PROGRAM, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def the_line(done) -> str:
    """Return the one line of an error."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    return done.stderr


def commands(group: click.Group = main, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = dict(commands())


def new_id() -> str:
    return f"cli-{uuid4().hex[:12]}"


def at_step(session_id: str, server) -> int:
    done = longshort("sessions", "get", session_id, "--json", "--address", server.address)
    return json.loads(done.stdout)["step"]


# Help and documentation


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    done = CliRunner().invoke(main, [*path, "--help"])
    assert done.exit_code == 0
    assert f"longshort {' '.join(path)}" in done.output.partition("Example")[2]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_and_every_flag_of_it_is_documented(path):
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert f"`longshort {' '.join(path)}" in page
    if path == ("serve",):  # its flags have a page of their own
        page = (ROOT / "docs" / "configuration.md").read_text()
        assert all(f"`{option.flag} " in page for option in options() if option.field != "repository")
        return
    for parameter in EVERY[path].params:
        for flag in parameter.opts if isinstance(parameter, click.Option) else ():
            assert f"`{flag}" in page


def test_help_is_printed_without_a_command_and_for_it():
    assert "Commands:" in CliRunner().invoke(main, ["-h"]).output
    bare = CliRunner().invoke(main, [])
    assert bare.exit_code == 2
    assert "Commands:" in bare.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strem"], "strem"),
        (["stream", "--modle", "metro"], "--modle"),
        (["stream"], "give --model"),
        (["stream", "--model", "metro", "--timeout", "0"], "--timeout"),
        (["sessions", "get"], "ID"),
        (["sessions", "list", "--address", "localhost"], "give HOST:PORT"),
        (["health", "localhost"], "give HOST:PORT"),
        (["serve", "--grpc-port", "many"], "--grpc-port"),
        (["demo", "--address", NOWHERE], "--metrics"),
        (
            ["demo", "--address", NOWHERE, "--metrics", "http://127.0.0.1:1", "--serve"],
            "no service is started",
        ),
    ],
)
def test_a_mistake_of_the_callers_is_one_line_and_exit_code_two(arguments, said):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


# health


def test_health_of_a_serving_service_is_exit_code_zero(server):
    done = longshort("health", server.address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")


def test_health_asks_the_port_that_the_service_on_this_machine_was_given(server):
    done = longshort("health", env={"LONGSHORT_GRPC_PORT": str(server.port)})
    assert done.returncode == 0


def test_health_of_a_service_that_is_not_serving_is_exit_code_one():
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    peer = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, peer)
    port = peer.add_insecure_port("127.0.0.1:0")
    peer.start()
    try:
        done = longshort("health", f"127.0.0.1:{port}")
    finally:
        peer.stop(0).wait()
    assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")


def test_health_where_nobody_listens_is_one_line_and_exit_code_one():
    done = longshort("health", NOWHERE, "--timeout", "1")
    assert done.returncode == 1
    assert NOWHERE in the_line(done)


# stream


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


def test_stream_finds_columns_by_the_names_in_a_header_and_writes_one(server):
    text = "\ufefftime,x2,x0,note,x1\n\n# a comment\n08:00,3,1,a,2\n08:30,,1,b,nan\n"
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
        ("# counts\n\ncounts\n1\n", "line 3: no number, and as a header it must name 'x0'", 0),
        ("1\n1e39\n", "line 2: '1e39' is not a finite 32-bit number", 1),
        ("1\ninf\n", "line 2: 'inf' is not a finite", 1),
        ("nan\n1\n", "line 1: VALUE_MISSING", 0),
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


def test_stream_names_the_line_that_the_service_refuses_among_many(start_server, tmp_path):
    write_random_model(tmp_path / "strict/1/model.onnx", name="strict", hidden=4, missing=MissingValue.REJECT)
    address = start_server(models=tmp_path).address
    text = "1\n" * 9 + "nan\n" + "1\n" * 9
    done = longshort("stream", "-m", "strict", "--session", "s", "--address", address, text=text)
    assert "line 10: VALUE_MISSING" in the_line(done)
    assert "9 values were applied before it, session s is at step 9" in done.stderr
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 9)


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


# sessions


def test_sessions_can_be_listed_read_forked_reset_and_deleted(server):
    session_id = new_id()
    at = ("--address", server.address)
    longshort("stream", "-m", "metro", "-s", session_id, *at, text="1\n2\n3\n")
    fork = longshort("sessions", "fork", session_id, f"{session_id}-fork", *at)
    assert fork.stdout == f"{session_id}-fork: metro/1 at step 3\n"
    listed = longshort(
        "sessions", "list", "--model", "metro", "--prefix", session_id, *at
    ).stdout.splitlines()
    assert listed[0].split()[:3] == ["SESSION", "MODEL", "STEP"]
    assert [line.split()[:3] for line in listed[1:]] == [
        [session_id, "metro/1", "3"],
        [f"{session_id}-fork", "metro/1", "3"],
    ]
    objects = longshort("sessions", "list", "--prefix", session_id, "--json", *at).stdout.splitlines()
    assert [json.loads(line)["id"] for line in objects] == [session_id, f"{session_id}-fork"]
    assert "step          3" in longshort("sessions", "get", session_id, *at).stdout
    memory = json.loads(longshort("sessions", "get", session_id, "--memory", "--json", *at).stdout)["memory"]
    assert {name: np.shape(tensor) for name, tensor in memory.items()} == {"c0": (1, 32), "h0": (1, 32)}
    assert "c0            (1, 32) float32" in longshort("sessions", "get", session_id, "--memory", *at).stdout
    assert longshort("sessions", "reset", session_id, *at).stdout == f"{session_id}: metro/1 at step 0\n"
    gone = longshort("sessions", "delete", session_id, f"{session_id}-fork", "cli-nope", *at)
    assert gone.stdout == f"{session_id}: deleted\n{session_id}-fork: deleted\n"
    assert gone.returncode == 2
    assert "SESSION_NOT_FOUND" in the_line(gone)


def test_an_exported_session_goes_on_under_another_id_to_the_bit(server, tmp_path):
    session_id = new_id()
    at = ("--address", server.address)
    longshort("stream", "-m", "metro", "-s", session_id, *at, text="1\n2\n3\n")
    file = tmp_path / "record"
    assert longshort("sessions", "export", session_id, "-o", str(file), *at).returncode == 0
    piped = subprocess.run(
        [*PROGRAM, "sessions", "export", session_id, *at], capture_output=True, timeout=30, check=True
    )
    assert piped.stdout == file.read_bytes()
    done = longshort("sessions", "import", str(file), "--session", f"{session_id}-copy", *at)
    assert done.stdout == f"{session_id}-copy: metro/1 at step 3\n"
    here = longshort("stream", "-s", session_id, *at, text="4\n")
    there = longshort("stream", "-s", f"{session_id}-copy", *at, text="4\n")
    assert here.stdout == there.stdout != ""
    assert "SESSION_EXISTS" in the_line(longshort("sessions", "import", str(file), *at))
    file.write_bytes(file.read_bytes()[:-1])
    damaged = longshort("sessions", "import", str(file), "--session", new_id(), *at)
    assert damaged.returncode == 2
    assert "INVALID_RECORD" in the_line(damaged)


def test_files_that_cannot_be_had_are_the_callers_mistake(server, tmp_path):
    session_id = new_id()
    at = ("--address", server.address)
    longshort("stream", "-m", "metro", "-s", session_id, *at, text="1\n")
    for arguments in (("import", "nowhere"), ("export", session_id, "-o", str(tmp_path / "no" / "where"))):
        done = longshort("sessions", *arguments, *at)
        assert done.returncode == 2
        assert "No such file or directory" in the_line(done)


def test_sessions_without_a_service_fail_with_exit_code_one():
    done = longshort("sessions", "list", "--address", NOWHERE, "--timeout", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert NOWHERE in the_line(done)


# describe


@pytest.mark.parametrize("path", ["metro", "metro/1", "metro/1/model.onnx"])
def test_describe_tells_a_model_from_its_folder_its_version_and_its_file(path):
    done = CliRunner().invoke(main, ["describe", str(SHIPPED / path)])
    assert done.exit_code == 0
    signature = Replay(SHIPPED / "metro" / "1" / "model.onnx").signature
    said = done.output
    assert said.startswith("metro, version 1\n")
    for word in ("vehicles/h", "10 % quantile", "every 1 h", "median is fed back as vehicles", "512 bytes"):
        assert word in said
    assert f"mae {signature.scores['mae']:.4g}" in said
    assert signature.fingerprint in said
    assert signature.trained_on in said


def test_describe_takes_the_highest_version_and_says_which_others_there_are(tmp_path):
    for version in (2, 10):
        write_random_model(tmp_path / f"m/{version}/model.onnx", name="m", hidden=4, features=2, outputs=1)
    said = CliRunner().invoke(main, ["describe", str(tmp_path / "m")]).output
    assert said.startswith("m, version 10 (beside it: 2)\n")
    for word in ("at any time", "forecast     no", "explain      no", "32 bytes"):
        assert word in said


def test_describe_prints_the_signature_as_json():
    done = CliRunner().invoke(main, ["describe", str(SHIPPED / "parking"), "--json"])
    assert json.loads(done.output)["name"] == "parking"


def test_describe_of_what_is_no_model_is_one_line_and_exit_code_two(tmp_path):
    (tmp_path / "file.onnx").write_text("no model")
    for path, said in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path, "no model.onnx in it"),
        (tmp_path / "file.onnx", "onnxruntime cannot load it"),
        (SHIPPED, f"name one: {SHIPPED / 'metro'}"),
    ):
        done = CliRunner().invoke(main, ["describe", str(path)])
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


# train, and what is loaded


def test_train_hands_its_arguments_on():
    done = longshort("train", "--help")
    assert done.returncode == 0
    assert "Usage: longshort train" in done.stdout
    wrong = longshort("train", "--data", "nowhere.csv")
    assert wrong.returncode == 2
    assert "nowhere.csv" in the_line(wrong)


@pytest.mark.torch
def test_train_makes_a_model_that_describe_reads(tmp_path):
    pytest.importorskip("torch")
    rows = "\n".join(str(np.sin(t / 5)) for t in range(400))
    (tmp_path / "wave.csv").write_text(f"level\n{rows}\n")
    small = ("--hidden", "4", "--updates", "3", "--window", "20", "--no-progress")
    files = ("--out", str(tmp_path / "models"), "--report", str(tmp_path))
    done = longshort("train", "--data", str(tmp_path / "wave.csv"), "--column", "level", *small, *files)
    assert done.returncode == 0, done.stderr
    assert "wave, version 1" in longshort("describe", str(tmp_path / "models" / "wave")).stdout


def test_train_without_torch_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nfrom longshort_service.cli import main\nmain(['train'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "longshort-server[train]" in the_line(done)


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (["--help"], ("grpc", "numpy", "onnxruntime", "torch")),
        (["health", "--help"], ("grpc", "numpy", "onnxruntime", "torch")),
        (["describe", str(SHIPPED / "metro")], ("grpc", "onnx", "torch")),
        (["train", "--help"], ("torch", "onnx")),
    ],
)
def test_a_command_loads_no_more_than_it_needs(arguments, never):
    code = "import sys\nfrom longshort_service.cli import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print('loaded', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert not set(never) & set(loaded)
