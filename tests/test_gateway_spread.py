"""Where the lanes of a gateway go: no server gets more than its share of them, and two gateways do not agree."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longshort.gateway.spread import Spread
from longshort.placement import Placement

NUM_LANES = 16


def keys_of(gateway: int) -> list[str]:
    return [f"gateway-{gateway}:lane-{number}" for number in range(NUM_LANES)]


def addresses(count: int) -> list[str]:
    return [f"10.0.0.{number}:50051" for number in range(count)]


def num_lanes_of(gateway: int, count: int) -> Counter[str]:
    spread = Spread(keys_of(gateway))
    return Counter(spread(key, addresses(count)) for key in keys_of(gateway))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12, 16, 24])
def test_no_server_gets_more_than_its_share_of_a_gateway(count: int):
    for gateway in range(20):
        assert max(num_lanes_of(gateway, count).values()) <= -(-NUM_LANES // count)


@pytest.mark.parametrize("count", [3, 6, 12, 24])
def test_gateways_together_load_all_servers_alike(count: int):
    total = Counter[str]()
    for gateway in range(200):
        total.update(num_lanes_of(gateway, count))
    fair = 200 * NUM_LANES / count
    assert all(0.75 * fair < total[address] < 1.25 * fair for address in addresses(count))


@given(count=st.integers(1, 20), order=st.randoms(use_true_random=False))
def test_place_depends_on_the_servers_alone(count, order):
    shuffled = addresses(count)
    order.shuffle(shuffled)
    spread = Spread(keys_of(0))
    for key in keys_of(0):
        assert spread(key, shuffled) == Spread(keys_of(0))(key, addresses(count))


def test_lanes_of_a_dead_server_fall_to_several_others_and_come_back():
    spread, placed = Spread(keys_of(3)), Placement(addresses(4), choose=Spread(keys_of(3)))
    before = {key: placed.place(key, 0) for key in keys_of(3)}
    assert before == {key: spread(key, addresses(4)) for key in keys_of(3)}
    dead = addresses(4)[1]
    placed.failed(dead, 0)
    moved = {placed.place(key, 0) for key in keys_of(3) if before[key] == dead}
    assert dead not in moved
    assert len(moved) > 1
    placed.succeeded(dead)
    assert {key: placed.place(key, 0) for key in keys_of(3)} == before
