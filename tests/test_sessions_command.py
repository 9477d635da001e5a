"""`longshort sessions` against the real service."""

from __future__ import annotations

import json
import subprocess

import numpy as np
from program import NOWHERE, PROGRAM, longshort, new_id, the_line


def test_sessions_can_be_listed_read_forked_reset_and_deleted(server):
    session_id = new_id()
    at = ("--address", server.address)
    longshort("stream", "-m", "metro", "-s", session_id, *at, text="1\n2\n3\n")
    fork = longshort("sessions", "fork", session_id, f"{session_id}-fork", *at)
    assert fork.stdout == f"{session_id}-fork: metro/1 at step 3\n"
    listed = longshort(
        "sessions", "list", "--model", "metro", "--prefix", session_id, *at
    ).stdout.splitlines()
    assert listed[0].split() == ["SESSION", "MODEL", "STEP", "DURABLE", "LAG", "WHERE", "IDLE", "STREAM"]
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
    assert [line.split()[5] for line in listed[1:]] == ["memory", "memory"]
    gone = longshort("sessions", "delete", session_id, "cli-nope", f"{session_id}-fork", *at)
    assert gone.stdout == f"{session_id}: deleted\n{session_id}-fork: deleted\n"
    assert gone.returncode == 2
    assert "Error: cli-nope: SESSION_NOT_FOUND" in the_line(gone)


def test_how_far_a_session_is_stored_and_where_it_is_are_told_in_the_same_words(start_server, tmp_path):
    store = ("--store", f"sqlite:///{tmp_path}/sessions.db")
    server = start_server(*store)
    at = ("--address", server.address)
    longshort("stream", "-m", "metro", "-s", "s", "--durability", "sync", *at, text="1\n2\n3\n")
    server.stop()
    at = ("--address", start_server(*store).address)
    row = longshort("sessions", "list", *at).stdout.splitlines()[1].split()
    assert row[:6] == ["s", "metro/1", "3", "3", "0", "store"]
    described = json.loads(longshort("sessions", "get", "s", "--json", *at).stdout)
    assert (described["durable_step"], described["lag_steps"], described["location"]) == (3, 0, "store")
    said = longshort("sessions", "get", "s", *at).stdout
    assert "durable_step  3\n" in said
    assert "lag_steps     0\n" in said
    assert "location      store\n" in said


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
