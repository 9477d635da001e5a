"""The command line as a whole: help, documentation, mistakes, health, training, what is loaded."""

from __future__ import annotations

import subprocess
import sys
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from longshort_service.cli import main
from longshort_service.config import options
from program import NOWHERE, ROOT, SHIPPED, longshort, the_line

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def commands(group: click.Group = main, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = dict(commands())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    assert CliRunner().invoke(main, [*path, "-h"]).exit_code == 0
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


@contextmanager
def peer_that_says(**statuses: int) -> Iterator[str]:
    """Give the address of a service whose health is this, by name: `store` is longshort.store, `all` is ""."""
    servicer = health.HealthServicer()
    for name, status in statuses.items():
        servicer.set("" if name == "all" else f"longshort.{name}", status)
    peer = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, peer)
    port = peer.add_insecure_port("127.0.0.1:0")
    peer.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        peer.stop(0).wait()


def test_health_of_a_service_that_is_not_serving_is_exit_code_one():
    with peer_that_says(all=NOT_SERVING, store=NOT_SERVING) as address:
        done = longshort("health", address)
    assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")


def test_health_without_the_session_store_is_degraded_and_exit_code_zero():
    with peer_that_says(all=SERVING, store=NOT_SERVING, live=SERVING) as address:
        done = longshort("health", address)
        store, live = (longshort("health", address, "--service", f"longshort.{n}") for n in ("store", "live"))
    assert (done.returncode, done.stdout) == (0, "SERVING, degraded: the session store is away\n")
    assert (store.returncode, store.stdout) == (1, "NOT_SERVING\n")
    assert (live.returncode, live.stdout) == (0, "SERVING\n")


def test_health_of_a_service_that_knows_no_session_store_is_plain():
    with peer_that_says(all=SERVING) as address:
        done = longshort("health", address)
        unknown = longshort("health", address, "--service", "longshort.stor")
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    assert unknown.returncode == 2
    assert "there is no service 'longshort.stor'" in the_line(unknown)


def test_health_where_nobody_listens_is_one_line_and_exit_code_one():
    done = longshort("health", NOWHERE, "--timeout", "1")
    assert done.returncode == 1
    assert NOWHERE in the_line(done)


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
    small = ("--hidden", "4", "--updates", "3", "--window", "20", "--name", "oven")
    files = ("--out", str(tmp_path / "models"), "--report", str(tmp_path))
    done = longshort("train", "--data", str(tmp_path / "wave.csv"), "--column", "level", *small, *files)
    assert done.returncode == 0, done.stderr
    assert "train oven: " in done.stderr  # the bar
    assert f"scores in {tmp_path / 'oven.json'}, drawn in {tmp_path / 'oven.png'}\n" in done.stdout
    assert (tmp_path / "oven.json").is_file()
    assert (tmp_path / "oven.png").is_file()
    assert done.stdout.endswith(f"next: longshort serve {tmp_path / 'models'}\n")
    assert "oven, version 1" in longshort("describe", str(tmp_path / "models" / "oven")).stdout


def test_train_without_torch_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nfrom longshort_service.cli import main\nmain(['train'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "in a checkout: pip install ./client '.[train]'" in the_line(done)


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
