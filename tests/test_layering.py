"""Imports point one way: each module of the service may know only the rooms that it is given here.

Imports under TYPE_CHECKING count like others between the rooms of the service: whoever names a type of a room
knows that room. They do not count for third-party packages in the core, of which types alone (numpy's) would do no
harm, except that the forbidden ones are forbidden there too: a core that names gRPC's types knows gRPC.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE = ROOT / "service" / "longshort_service"
MODULES = {
    ".".join(path.relative_to(SERVICE.parent).with_suffix("").parts): path for path in SERVICE.rglob("*.py")
}

# The core: plain, typed, deterministic Python.
CORE = (
    "protocol",
    "session",
    "snapshot",
    "waiters",
    "sessions",
    "sharded_dict",
    "row_index",
    "arena",
    "host_states",
    "durability",
    "columns",
    "batching",
    "singles",
    "served_model",
    "handles",
    "frame_work",
    "frames",
    "frame_answer",
    "values",
    "beginning",
    "forecast",
    "general_run",
    "graph_check",
    "record",
    "ports",
    "signature",
    "signature_json",
    "errors",
)
NOT_IN_THE_CORE = {
    "grpc",
    "asyncio",
    "onnxruntime",
    "prometheus_client",
    "click",
    "torch",
    "onnx",
    "longshort",
}

# What each room may import of the service. A room that is not named here is above all of these, or beside them.
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "beginning": {"arena", "errors", "served_model", "signature"},
    "forecast": {"errors", "signature", "values"},
    "ports": set(),
    "signature": {"ports"},
    "signature_json": {"ports", "signature"},
    "arena": set(),
    "host_states": {"arena", "signature"},
    "batching": {"arena", "errors"},
    "durability": set(),
    "columns": {"batching", "durability", "protocol"},
    "singles": {"errors", "arena", "batching", "columns", "served_model"},
    "protocol": {"errors"},
    "values": {"errors", "ports", "signature"},
    "record": {"errors", "ports", "protocol"},
    "served_model": {"errors", "arena", "batching", "columns", "record", "signature"},
    "session": {
        *("errors", "arena", "batching", "columns", "durability", "protocol", "record", "served_model"),
        "values",
    },
    "snapshot": {"protocol", "record", "served_model", "session"},
    "waiters": {"errors", "repository", "session"},
    "outage": {"errors", "stores.base"},
    "row_index": {"columns", "served_model", "session"},
    "sharded_dict": set(),
    "sessions": {
        "errors",
        "arena",
        "durability",
        "record",
        "row_index",
        "served_model",
        "session",
        "sharded_dict",
    },
    "handles": {"errors", "arena", "served_model", "session"},
    "frame_work": {"errors", "batching", "handles", "served_model", "session"},
    "frames": {
        "errors",
        "values",
        "arena",
        "batching",
        "columns",
        "frame_work",
        "handles",
        "served_model",
        "session",
    },
    "frame_answer": {"frame_work", "served_model"},
    "general_run": {"arena", "ports", "signature"},
    "graph_check": {"ports", "signature"},
    "model_file": {"graph_check"},
    "graph_facts": set(),
    "tensor_file": {"graph_check"},
    "model_checks": {"graph_check", "graph_facts", "model_file", "tensor_file"},
    "signature_file": {"graph_check", "signature"},
    "state_pairs": {"graph_facts"},
    "signature_roles": {"graph_check", "graph_facts", "ports", "signature_file", "state_pairs"},
    "signature_axes": {"graph_check", "graph_facts", "signature_file", "signature_roles"},
    "answer_axes": {"graph_facts", "signature_axes", "signature_file", "signature_roles"},
    "signature_build": {
        *("graph_check", "graph_facts", "ports", "signature", "signature_axes", "signature_file"),
        *("signature_roles", "tensor_file"),
    },
    "signature_merge": {"graph_facts", "ports", "signature", "signature_file"},
    "signature_text": {"graph_facts", "signature_axes", "signature_file", "signature_roles"},
    "fingerprint": {"ports", "signature"},
    "shape_probe": {
        *("engine", "graph_check", "graph_facts", "signature_axes", "signature_file", "signature_roles"),
        "tensor_file",
    },
    "model_signature": {
        *("answer_axes", "fingerprint", "graph_check", "graph_facts", "model_checks", "model_file"),
        *("shape_probe", "signature", "signature_axes", "signature_build", "signature_file"),
        *("signature_json", "signature_merge", "signature_roles", "signature_text"),
        "version_folder",
    },
    "row_probe": {"arena", "ports", "signature"},
    "step_results": set(),
    "engine": {
        *(
            "arena",
            "batching",
            "general_run",
            "graph_check",
            "host_states",
            "ports",
            "signature",
            "signature_json",
            "small_run",
        ),
        "step_results",
    },
    "explain_file": {"engine", "explain_graph", "graph_check", "version_folder"},
    "file_trial": {
        "engine",
        "explain_file",
        "graph_check",
        "model_file",
        "model_signature",
        "signature_json",
    },
    "resident_graph": {"signature"},
    "recurrent_node": set(),
    "explain_cells": {"recurrent_node"},
    "explain_survey": {"recurrent_node"},
    "explain_graph": {"explain_cells", "explain_survey", "recurrent_node"},
    "device_states": {"arena", "engine", "graph_check", "host_states", "resident_graph"},
    "resident_engine": {
        *("batching", "device_states", "engine", "graph_check", "resident_graph", "signature"),
    },
    "lane": {
        "errors",
        "served_model",
        "arena",
        "batching",
        "columns",
        "engine",
        "host_states",
        "resident_engine",
        "singles",
        "small_run",
    },
    "few_steps": {"lane", "served_model"},
    "small_run": {"signature"},
    "scheduler": {"errors", "arena", "batching", "few_steps", "lane", "singles"},
    "turns": {"repository", "session"},
    "stores.base": {"errors", "record"},
    "stores.memory": {"errors", "record", "sharded_dict", "stores.base"},
    "stores.backend": {"errors", "record", "stores.base"},
    "stores.settler": set(),
    "stores.threaded": {"errors", "record", "stores.backend", "stores.base", "stores.settler"},
    "stores.reading": {"errors", "record", "stores.base"},
    "stores.reserve": set(),
    "stores.sqlite_health": set(),
    "stores.sqlite_file": {"stores.backend", "stores.reserve", "stores.sqlite_health"},
    "stores.sqlite": {
        *("errors", "record", "stores.backend", "stores.base", "stores.reading", "stores.sqlite_file"),
    },
    "stores.redis_address": {"stores.backend"},
    "stores.redis_scripts": set(),
    "stores.redis_link": {"stores.backend", "stores.redis_address"},
    "stores.redis": {
        *("errors", "record", "stores.backend", "stores.base", "stores.reading", "stores.redis_address"),
        *("stores.redis_link", "stores.redis_scripts"),
    },
    "stores.opening": {
        *("stores.backend", "stores.base", "stores.memory", "stores.redis", "stores.redis_address"),
        *("stores.sqlite", "stores.sqlite_file", "stores.threaded"),
    },
    "behind": {"columns", "durability", "outage", "repository", "session", "sessions"},
    "session_writer": {
        *(
            "behind",
            "durability",
            "errors",
            "record",
            "repository",
            "session",
            "sessions",
            "snapshot",
            "stores.base",
        ),
        "turns",
    },
    "interval_writer": {
        *("behind", "outage", "repository", "session", "session_writer", "sessions", "snapshot", "turns"),
    },
    "checkpointer": {
        *("behind", "durability", "errors", "interval_writer", "outage", "record", "repository", "session"),
        *("session_writer", "sessions", "stores.base", "turns", "waiters"),
    },
    "processor": set(),
    "version_folder": set(),
    "repository": {
        "explain_file",
        *("errors", "arena", "columns", "engine", "graph_check", "lane", "processor", "record", "signature"),
        "version_folder",
    },
    "repository_watch": {"repository", "version_folder"},
    "eviction": {"errors", "record", "repository", "session", "sessions", "stores.base", "turns", "waiters"},
    "model_change": {"beginning", "errors", "record", "repository"},
    "model_exchange": {
        "beginning",
        "errors",
        "turns",
        "checkpointer",
        "model_change",
        "opener",
        "repository",
        "session",
        "sessions",
    },
    "opener": {
        "beginning",
        "record",
        "arena",
        "durability",
        "errors",
        "eviction",
        "model_change",
        "outage",
        "repository",
        "served_model",
        "session",
        "sessions",
        "stores.base",
        "turns",
    },
    "keeper": {
        "arena",
        "checkpointer",
        "durability",
        "errors",
        "eviction",
        "model_change",
        "model_exchange",
        "opener",
        "record",
        "repository",
        "session",
        "served_model",
        "sessions",
        "stores.base",
        "turns",
    },
    "stepper": {
        *(
            "errors",
            "forecaster",
            "arena",
            "batching",
            "record",
            "repository",
            "scheduler",
            "served_model",
            "session",
            "singles",
        ),
        "values",
    },
    "forecaster": {
        *("errors", "arena", "batching", "forecast", "record", "repository", "scheduler", "served_model"),
    },
    "stateless": {
        *("arena", "batching", "beginning", "errors", "repository", "served_model", "stepper", "values"),
    },
    "management": {
        "beginning",
        "errors",
        "keeper",
        "opener",
        "record",
        "repository",
        "session",
        "stores.base",
        "turns",
    },
    "model_loader": {
        "explain_file",
        "file_trial",
        "model_signature",
        "row_probe",
        *("arena", "batching", "columns", "config", "engine", "host_states", "lane", "metrics", "observers"),
        *("graph_check", "repository", "resident_engine", "resident_graph", "signature", "version_folder"),
    },
    "instruments": set(),
    "metrics": {"instruments"},
    "observers": {"metrics"},
    "garbage": set(),
    "http_endpoint": {"config"},
    "logs": set(),
    "option_kinds": set(),
    "config": {"option_kinds"},
    "transport.__init__": set(),
    "transport.doorbell": set(),
    "transport.watcher": set(),
    "transport.selector": {"transport.doorbell", "transport.watcher"},
    "transport.event_loop": {"transport.selector"},
    "transport.call": set(),
    "transport.context": {"transport.call"},
    "transport.coroutines": {"transport.call", "transport.context"},
    "transport.server": {"transport.call", "transport.coroutines", "transport.event_loop"},
}
EXPLAINING = ("recurrent_node", "explain_cells", "explain_survey", "explain_graph", "explain_file")
ONLY_IN = {
    "onnxruntime": {"engine", "device_states", "small_run"},
    "prometheus_client": {"metrics", "http_endpoint", "demo"},
    "click": {"cli", "config", "commands"},
    "torch": set(),
    "onnx": {"resident_graph", "resident_engine", "graph_facts", "model_checks", *EXPLAINING},
    "longshort_model": {"commands", "demo"},
}
# The service's side of the wire, and what calls a service as a client does.
MAY_IMPORT_GRPC = {"handlers", "transport", "app", "commands", "demo"}


def imports_of(path: Path) -> set[str]:
    """Return every module that a file imports anywhere, as full dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    """Return the rooms of the service that a file imports, without the package's name."""
    return {
        name.removeprefix("longshort_service.")
        for name in imports_of(path)
        if name in MODULES and name != "longshort_service"
    }


def packages_of(path: Path) -> set[str]:
    """Return the top-level names that a file imports."""
    return {name.partition(".")[0] for name in imports_of(path)}


def room_of(module: str) -> str:
    return module.removeprefix("longshort_service.")


@pytest.mark.parametrize("room", MAY_KNOW)
def test_room_knows_no_other_than_it_may(room: str):
    assert rooms_of(MODULES[f"longshort_service.{room}"]) <= MAY_KNOW[room]


def test_every_room_below_the_handlers_is_on_the_list():
    above = (
        "app",
        "cli",
        "serving",
        "handlers",
        "inference",
        "commands",
        "demo",
        "__main__",
        "__init__",
        "stores.__init__",
    )
    missing = [
        name
        for name in map(room_of, MODULES)
        if name not in MAY_KNOW and not any(name == room or name.startswith(f"{room}.") for room in above)
    ]
    assert [name for name in missing if name not in {"longshort_service", "stores"}] == []


def test_imports_point_one_way():
    """The rooms on the list can be put in an order in which each knows only those before it."""
    placed: set[str] = set()
    left = dict(MAY_KNOW)
    while left:
        ready = [room for room, known in left.items() if known <= placed]
        assert ready, f"rooms that know each other: {sorted(left)}"
        placed.update(ready)
        left = {room: known for room, known in left.items() if room not in placed}


@pytest.mark.parametrize("room", CORE)
def test_core_is_plain_python(room: str):
    assert packages_of(MODULES[f"longshort_service.{room}"]).isdisjoint(NOT_IN_THE_CORE)


@pytest.mark.parametrize("package", ONLY_IN)
def test_package_is_imported_only_where_it_belongs(package: str):
    importers = {room_of(name) for name, path in MODULES.items() if package in packages_of(path)}
    assert {name.partition(".")[0] for name in importers} <= ONLY_IN[package]


def test_grpc_is_known_only_at_the_edges():
    importers = {room_of(name) for name, path in MODULES.items() if "grpc" in packages_of(path)}
    assert {name.partition(".")[0] for name in importers} <= MAY_IMPORT_GRPC


def test_what_lies_under_grpc_is_known_only_to_the_transport():
    importers = {
        room_of(name)
        for name, path in MODULES.items()
        if any("._cython" in found for found in imports_of(path))
    }
    assert {name.partition(".")[0] for name in importers} == {"transport"}


def test_only_the_handlers_and_what_calls_a_service_know_the_contract_s_messages():
    importers = {room_of(name) for name, path in MODULES.items() if "longshort" in packages_of(path)}
    assert {name.partition(".")[0] for name in importers} <= MAY_IMPORT_GRPC


def test_handlers_know_no_engine_no_arena_and_no_scheduler():
    for name, path in MODULES.items():
        if room_of(name).startswith("handlers."):
            assert rooms_of(path).isdisjoint({"engine", "arena", "scheduler", "lane", "app"}), name


def test_client_knows_nothing_of_the_service_or_the_models():
    for path in (ROOT / "client" / "longshort").rglob("*.py"):
        foreign = {
            "longshort_service",
            "longshort_model",
            "onnxruntime",
            "torch",
            "onnx",
            "click",
            "prometheus_client",
        }
        assert packages_of(path).isdisjoint(foreign), path


def test_model_half_knows_no_more_of_the_service_than_the_signature():
    known = {f"longshort_service.{room}" for room in ("signature", "signature_json", "ports", "engine")}
    for path in (ROOT / "model" / "longshort_model").rglob("*.py"):
        found = {name for name in imports_of(path) if name in MODULES and name != "longshort_service"}
        assert found <= known, path


LOADED = "import sys, {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("longshort_service.app", {"torch", "onnx", "matplotlib", "longshort_model", "tqdm"}),
        ("longshort_service.serving", {"torch", "onnx", "matplotlib", "longshort_model", "tqdm"}),
        ("longshort_service.cli", {"torch", "onnx", "onnxruntime", "grpc", "matplotlib", "numpy"}),
        (
            "longshort",
            {"onnxruntime", "longshort_service", "longshort_model", "torch", "click", "prometheus_client"},
        ),
    ],
)
def test_import_loads_nothing_that_it_has_no_use_for(module: str, unwanted: set[str]):
    command = [sys.executable, "-c", LOADED.format(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert module.partition(".")[0] in loaded
    assert loaded.isdisjoint(unwanted)
