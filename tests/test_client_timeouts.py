"""Deadlines of the sync client at the moment when a stream begins, against a real service that is stopped."""

from __future__ import annotations

import time
from typing import Any

import longshort
import numpy as np
import pytest
from longshort import errors
from peers import frozen

BOUND_S = 5  # far above every timeout here, far below the 20 s after which keepalive finds the peer dead


@pytest.mark.parametrize("timeout_s", [0.00001, 0.0001, 0.0003, 0.05])
def test_deadline_that_passes_while_a_stream_begins_cuts_it(start_server: Any, timeout_s: float):
    server = start_server()
    with longshort.Client(server.address) as client:
        client.models()  # connected: the peer takes the stream
        with frozen(server):
            started_s = time.monotonic()
            with pytest.raises(errors.DeadlineExceeded):
                client.session(model="metro", timeout_s=timeout_s)
            assert time.monotonic() - started_s < BOUND_S


def test_deadline_that_passes_between_two_streams_cuts_the_second(
    start_server: Any, monkeypatch: pytest.MonkeyPatch
):
    server = start_server()
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        first = session.step(1)
        new_stream = client.new_stream

        def late_stream(session_id: str, address: str) -> Any:
            time.sleep(0.6)  # the alarm rings now, and finds the old stream
            return new_stream(session_id, address)

        monkeypatch.setattr(client, "new_stream", late_stream)
        assert session._stream is not None
        session._stream.call.cancel()
        with frozen(server):
            started_s = time.monotonic()
            with pytest.raises(errors.LongshortError, match="retry"):
                session.step(2, timeout_s=0.5)
            assert time.monotonic() - started_s < BOUND_S
        monkeypatch.undo()
        assert session.in_doubt
        second = session.retry()
    with longshort.Client(server.address) as client, client.session(model="metro") as session:
        np.testing.assert_array_equal(session.steps([1, 2]), np.stack([first, second]))
