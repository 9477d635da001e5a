"""Model versions on disk and in memory: what is loaded, what is kept, what is refused without harm."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import weakref
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from graphs import write_adder
from house import House
from longshort_service import errors
from longshort_service.processor import processor_name
from longshort_service.record import Origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Play = Callable[[Callable[[House], Awaitable[None]]], None]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_adder(tmp_path / "adder" / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
def play(run: Callable[..., Any], models: Path) -> Play:
    def play_in(scenario: Callable[[House], Awaitable[None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20), House(models) as built:
                await scenario(built)

        run(limited())

    return play_in


def labels(house: House) -> list[str]:
    return [f"{model.name}/{model.version}" for model in house.repository.models()]


async def reload(house: House) -> Any:
    return await house.reload()


def test_highest_version_serves_by_default(play: Play, models: Path):
    for version in (2, 10):
        write_adder(models / "adder" / str(version) / "model.onnx")

    async def scenario(house: House) -> None:
        assert labels(house) == ["adder/1", "adder/2", "adder/10"]
        assert house.repository.get("adder").version == 10
        assert house.repository.get("adder", 2).version == 2
        assert [house.repository.is_serving(model) for model in house.repository.models()] == [
            False,
            False,
            True,
        ]

    play(scenario)


def test_unknown_model_or_version_is_refused_with_what_there_is(play: Play):
    async def scenario(house: House) -> None:
        with pytest.raises(errors.ModelNotFound, match="there are: adder"):
            house.repository.get("nobody")
        with pytest.raises(errors.ModelNotFound, match="there are: 1") as caught:
            house.repository.get("adder", 7)
        assert caught.value.metadata == {"model": "adder", "version": "7"}

    play(scenario)


def test_folders_that_are_no_versions_are_left_alone(play: Play, models: Path):
    for name in ("0", "01", "01x", "latest", "-1", "1.5", "²", ".2"):
        write_adder(models / "adder" / name / "model.onnx")
    (models / "adder" / "9").mkdir()
    (models / "README.md").write_text("about these models")

    async def scenario(house: House) -> None:
        assert labels(house) == ["adder/1"]

    play(scenario)


def test_model_tells_what_the_numbers_of_its_sessions_come_from(play: Play, models: Path):
    signature = write_adder(models / "adder" / "2" / "model.onnx", bias=1, state_family="sums")

    async def scenario(house: House) -> None:
        first, second = house.repository.models()
        assert second.origin == Origin(
            model="adder",
            version=2,
            fingerprint=signature.fingerprint,
            provider="CPUExecutionProvider",
            processor=processor_name(),
            build=onnxruntime.__version__,
            state_family="sums: 1 in, 1 out, s0 [-1, 1]",
        )
        assert first.origin.state_family == ""
        assert processor_name()

    play(scenario)


def test_new_version_is_loaded_and_nothing_else_changes(play: Play, models: Path):
    async def scenario(house: House) -> None:
        before = house.repository.get("adder")
        write_adder(models / "adder" / "2" / "model.onnx")
        write_adder(models / "other" / "1" / "model.onnx")
        result = await reload(house)
        assert (result.loaded, result.unloaded, result.failed) == (["adder/2", "other/1"], [], {})
        assert house.repository.get("adder", 1) is before
        assert (await reload(house)).loaded == []

    play(scenario)


def test_version_that_is_gone_is_unloaded_when_nothing_uses_it(play: Play, models: Path):
    async def scenario(house: House) -> None:
        write_adder(models / "adder" / "2" / "model.onnx")
        await reload(house)
        session = await house.open("s", version=1)
        shutil.rmtree(models / "adder" / "1")
        assert (await reload(house)).unloaded == []
        assert await house.step(session, 5) == [5]
        await house.management.delete("s")
        assert (await reload(house)).unloaded == ["adder/1"]
        assert labels(house) == ["adder/2"]
        shutil.rmtree(models / "adder")
        assert (await reload(house)).unloaded == ["adder/2"]
        with pytest.raises(errors.ModelNotFound, match="there are: none"):
            house.repository.get("adder")

    play(scenario)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_broken_file_is_reported_and_what_served_goes_on_serving(
    play: Play, models: Path, content: bytes | None
):
    async def scenario(house: House) -> None:
        path = models / "adder" / "2" / "model.onnx"
        path.parent.mkdir()
        if content is None:
            path.symlink_to(models / "nowhere")
        else:
            path.write_bytes(content)
        result = await reload(house)
        assert result.loaded == []
        assert content is None or "adder/2" in result.failed
        assert house.repository.get("adder").version == 1
        path.unlink()
        write_adder(path)
        assert (await reload(house)).loaded == ["adder/2"]

    play(scenario)


def test_file_changed_under_its_version_is_reported_and_not_loaded(play: Play, models: Path):
    async def scenario(house: House) -> None:
        model = house.repository.get("adder")
        os.utime(models / "adder" / "1" / "model.onnx", ns=(0, 1))
        result = await reload(house)
        assert "needs a new version number" in result.failed["adder/1"]
        assert house.repository.get("adder") is model

    play(scenario)


def test_reloads_at_once_load_each_version_once(play: Play, models: Path):
    async def scenario(house: House) -> None:
        write_adder(models / "adder" / "2" / "model.onnx")
        results = await asyncio.gather(*(reload(house) for _ in range(3)))
        assert sorted(result.loaded for result in results) == [[], [], ["adder/2"]]

    play(scenario)


def test_queue_and_state_are_counted_over_all_versions(play: Play, models: Path):
    write_adder(models / "adder" / "2" / "model.onnx")

    async def scenario(house: House) -> None:
        await house.open("a", version=1)
        session = await house.open("b", version=2)
        assert house.repository.num_state_bytes("adder") == 2 * 4
        step = asyncio.ensure_future(house.step(session, 1, 1, 1))
        await asyncio.sleep(0)
        assert house.repository.num_queued_steps("adder") == 3
        await step
        assert house.repository.num_queued_steps("adder") == 0
        assert house.repository.num_queued_steps("nobody") == house.repository.num_state_bytes("nobody") == 0

    play(scenario)


def test_version_that_only_stored_sessions_use_is_not_unloaded(play: Play, models: Path):
    async def scenario(house: House) -> None:
        session = await house.open("s")
        await house.step(session, 5)
        await house.spill(session)
        shutil.rmtree(models / "adder")
        assert (await reload(house)).unloaded == []
        again = await house.open("s", model="")
        assert await house.step(again, 1) == [6]
        await house.management.delete("s")
        assert (await reload(house)).unloaded == ["adder/1"]

    play(scenario)


def test_unloaded_model_is_released_though_it_had_sessions(play: Play, models: Path):
    async def scenario(house: House) -> None:
        await house.open("s")
        await house.management.delete("s")
        shutil.rmtree(models / "adder")
        gone = weakref.ref(house.repository.get("adder").lane.arena)
        house.notes.seen.clear()
        await reload(house)
        house.notes.seen.clear()
        gc.collect()
        assert gone() is None

    play(scenario)


def test_models_that_come_and_go_are_told_of_at_once(play: Play, models: Path):
    async def scenario(house: House) -> None:
        assert [told[0].version for told in house.notes.of("loaded")] == [1]
        shutil.rmtree(models / "adder")
        await reload(house)
        assert [told[0].version for told in house.notes.of("unloaded")] == [1]

    play(scenario)
