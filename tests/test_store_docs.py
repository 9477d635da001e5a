"""docs/stores.md: its commands do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from longshort_service.stores.base import OpenMode
from longshort_service.stores.opening import make_store
from store_records import opened, record_of, same, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., object]

PAGE = (Path(__file__).parent.parent / "docs" / "stores.md").read_text()


def test_backup_is_taken_and_restored_with_the_commands_of_the_page(tmp_path: Path, run: Run):
    back_up, restore = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)

    def shell(commands: str) -> None:
        text = commands.replace("python ", f"'{sys.executable}' ")
        subprocess.run(["sh", "-ec", text], cwd=tmp_path, check=True, timeout=60)

    async def scenario() -> None:
        url = f"sqlite:///{tmp_path}/sessions.db"
        store = make_store(url, max_entries=9, environ={})
        record = await stored(store, "s")
        shell(back_up)
        assert await store.write([record_of("s", record.epoch, step=9)]) == [None]
        await stored(store, "later")
        await store.close()
        shell(restore)
        store = make_store(url, max_entries=9, environ={})
        assert await store.list_ids("", "", 9) == ["s"]
        assert same((await opened(store, "s", OpenMode.OPEN)).record, record)
        await store.close()

    run(scenario())


def test_every_scheme_is_on_the_page():
    for scheme in ("memory", "sqlite", "redis", "rediss", "redis+sentinel", "rediss+sentinel"):
        assert f"`{scheme}://" in PAGE
