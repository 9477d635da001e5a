"""What many tests share: model files, and the real service as a process of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from longshort_model.synthetic import write_random_model
from servers import Server, running_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from wire import Caller


@pytest.fixture(scope="session", autouse=True)
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A service that is not told where to keep sessions keeps them for the tests alone, not among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[..., object]]:
    """Run coroutines on one event loop for the whole session, the service's own: grpc.aio stays with a loop."""
    import asyncio

    from longshort_service.transport.event_loop import CompletionLoop

    with asyncio.Runner(loop_factory=CompletionLoop) as runner:
        yield runner.run


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with random models: metro (as shipped: 1 feature, 3 outputs), wide (3 features), deep (2 layers)."""
    root = tmp_path_factory.mktemp("models")
    for name, shape in {
        "metro": {"hidden": 32},
        "wide": {"hidden": 8, "features": 3, "outputs": 2},
        "deep": {"hidden": 16, "layers": 2},
    }.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        write_random_model(folder / "model.onnx", name=name, **shape)
        write_random_model(folder / "explain.onnx", name=name, explain=True, **shape)
    return root


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all tests that leave it as they found it but for sessions of their own."""
    with running_server(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running
        assert running.errors() == []


@pytest.fixture(scope="session")
def tight_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service at its limits: short pieces, small batches, all runs in the thread, spilling at every occasion."""
    limits = "--piece-steps 7 --max-batch-rows 5 --inline-run-limit 0 --max-sessions 20 --idle-timeout 50ms"
    log = tmp_path_factory.mktemp("log") / "tight.log"
    with running_server(repository, log, *limits.split()) as running:
        yield running
        assert running.errors() == []


@pytest.fixture(scope="session")
def adders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of models that add up: adder (missing values repeat), strict (are refused), passing (pass)."""
    from graphs import write_adders

    root = tmp_path_factory.mktemp("adders")
    write_adders(root)
    return root


@pytest.fixture(scope="session")
def adder_server(adders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service of the adders with small limits of messages."""
    limits = "--max-steps 50 --piece-steps 8 --max-message-bytes 4KiB"
    with running_server(adders, tmp_path_factory.mktemp("log") / "adders.log", *limits.split()) as running:
        yield running
        assert running.errors() == []


@pytest.fixture
def against(
    run: Callable[..., Any], adder_server: Server
) -> Callable[[Callable[[Caller], Awaitable[None]]], None]:
    """Run a scenario with a connection to the service of adders."""
    import asyncio

    from wire import Caller

    def play(scenario: Callable[[Caller], Awaitable[None]]) -> None:
        async def connected() -> None:
            async with asyncio.timeout(20), Caller(adder_server.address) as caller:
                await scenario(caller)

        run(connected())

    return play


@pytest.fixture
def start_server(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start services of the test's own; they end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(*flags: str, port: int = 0, models: Path = repository) -> Server:
            log = tmp_path / f"server-{time.monotonic_ns()}.log"
            log.touch()
            return stack.enter_context(running_server(models, log, *flags, port=port))

        yield start
