"""Placing sessions on servers: few move when one goes, every process agrees, and a dead server costs one caller."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort.placement import FIRST_PAUSE_S, MAX_PAUSE_S, Placement

SERVERS = ["10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.3:50051", "10.0.0.4:50051"]
KEYS = [f"sensor-{number}" for number in range(2_000)]


def placement(addresses: list[str] = SERVERS):
    return Placement(addresses, draw=lambda: 1.0)


def places(placed: Placement, now_s: float = 0.0):
    return {key: placed.place(key, now_s) for key in KEYS}


def test_keys_are_spread_evenly_over_the_servers():
    counts = Counter(places(placement()).values())
    assert set(counts) == set(SERVERS)
    assert all(abs(count - len(KEYS) / 4) < 100 for count in counts.values())  # 5 deviations of a fair draw


def test_order_of_the_addresses_and_one_named_twice_do_not_matter():
    assert places(placement([*reversed(SERVERS), SERVERS[0]])) == places(placement())


def test_another_process_places_every_key_alike():
    script = (
        "import sys; from longshort.placement import Placement\n"
        f"placed = Placement({SERVERS!r})\n"
        "sys.stdout.write(' '.join(placed.place(f'sensor-{n}', 0) for n in range(100)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == [placement().place(key, 0) for key in KEYS[:100]]


@given(
    addresses=st.lists(st.integers(0, 999), min_size=2, max_size=8, unique=True),
    keys=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=50),
    data=st.data(),
)
def test_only_the_keys_of_a_server_that_goes_move_and_they_come_back_with_it(addresses, keys, data):
    names = [f"server-{number}:1" for number in addresses]
    gone = data.draw(st.sampled_from(names))
    placed = Placement(names)
    before = {key: placed.place(key, 0) for key in keys}
    placed.failed(gone, 0)
    while_down = {key: placed.place(key, 0) for key in keys}
    assert all(while_down[key] == before[key] for key in keys if before[key] != gone)
    assert gone not in while_down.values()
    assert while_down == {
        key: Placement([name for name in names if name != gone]).place(key, 0) for key in keys
    }
    placed.succeeded(gone)
    assert {key: placed.place(key, 0) for key in keys} == before


def test_keys_of_a_dead_server_are_spread_over_all_others():
    placed = placement()
    before = places(placed)
    placed.failed(SERVERS[1], 0)
    moved = Counter(places(placed)[key] for key in KEYS if before[key] == SERVERS[1])
    assert len(moved) == 3
    assert min(moved.values()) > 100


def test_one_caller_tries_a_server_whose_time_is_over_and_the_others_stay_away():
    placed = placement()
    key = next(key for key in KEYS if placed.place(key, 0) == SERVERS[0])
    placed.failed(SERVERS[0], 0)
    assert placed.place(key, FIRST_PAUSE_S - 0.001) != SERVERS[0]
    assert placed.place(key, FIRST_PAUSE_S) == SERVERS[0]
    assert placed.place(key, FIRST_PAUSE_S) != SERVERS[0]
    placed.succeeded(SERVERS[0])
    assert placed.place(key, FIRST_PAUSE_S) == SERVERS[0]


def test_pauses_grow_to_their_bound_and_begin_anew_after_a_success():
    placed = placement()
    key = next(key for key in KEYS if placed.place(key, 0) == SERVERS[0])

    def pause_s(now_s: float) -> float:
        placed.failed(SERVERS[0], now_s)
        later = (now_s + step / 100 for step in range(2_000))
        return next(moment for moment in later if placed.is_up(SERVERS[0], moment)) - now_s

    pauses, now_s = [], 0.0
    for _ in range(7):
        pauses.append(pause_s(now_s))
        now_s += pauses[-1]
        assert placed.place(key, now_s) == SERVERS[0]  # the trial
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 10, 10], abs=0.02)
    placed.succeeded(SERVERS[0])
    assert pause_s(now_s) == pytest.approx(FIRST_PAUSE_S, abs=0.02)


def test_many_streams_that_one_server_takes_along_count_as_one_failure():
    placed = placement()
    for _ in range(500):
        placed.failed(SERVERS[0], 1.0)
    assert placed.is_up(SERVERS[0], 1.0 + FIRST_PAUSE_S)


def test_pauses_are_jittered_below_their_bound():
    early, late = Placement(SERVERS, draw=lambda: 0.0), placement()
    for placed in (early, late):
        placed.failed(SERVERS[0], 0)
    assert early.is_up(SERVERS[0], FIRST_PAUSE_S / 2)
    assert not late.is_up(SERVERS[0], FIRST_PAUSE_S / 2)


def test_each_has_its_turn_where_all_are_down():
    placed = placement()
    for second, server in enumerate(SERVERS):
        placed.failed(server, second / 100)
    now_s, tried = 0.1, []
    for _ in range(8):
        tried.append(placed.place("key", now_s))
        placed.failed(tried[-1], now_s)
        now_s += 0.01
    assert sorted(tried[:4]) == sorted(SERVERS)
    assert tried[4:] == tried[:4]


def test_one_server_is_always_the_place():
    placed = placement(SERVERS[:1])
    placed.failed(SERVERS[0], 0)
    assert placed.place("key", 0) == SERVERS[0]
    assert not placed.is_up(SERVERS[0], 0)


def test_new_addresses_keep_what_is_known_of_those_that_stay():
    placed = placement(SERVERS[:2])
    placed.failed(SERVERS[0], 0)
    placed.failed(SERVERS[1], 0)
    placed.set_addresses(SERVERS[1:])
    assert not placed.is_up(SERVERS[1], 0)
    assert placed.is_up(SERVERS[2], 0)
    placed.set_addresses(SERVERS)
    assert placed.is_up(SERVERS[0], 0)
    assert MAX_PAUSE_S > FIRST_PAUSE_S


def test_answer_of_no_addresses_changes_nothing_and_an_unknown_server_is_not_noted():
    placed = placement(SERVERS[:2])
    placed.set_addresses([])
    assert placed.addresses == tuple(SERVERS[:2])
    placed.failed("10.9.9.9:1", 0)
    assert places(placed) == places(placement(SERVERS[:2]))
