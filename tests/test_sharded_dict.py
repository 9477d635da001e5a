"""A dictionary in shards holds what one dictionary holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from longshort_service.sharded_dict import ShardedDict


@given(changes=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | st.integers())))
def test_shards_hold_what_one_dictionary_holds(changes: list[tuple[str, int | None]]):
    sharded, plain = ShardedDict[int](), dict[str, int]()
    for key, value in changes:
        if value is None:
            assert sharded.of(key).pop(key, None) == plain.pop(key, None)
        else:
            sharded.of(key)[key] = plain[key] = value
    assert len(sharded) == len(plain)
    assert sorted(sharded) == sorted(plain)
    assert {key: sharded.of(key)[key] for key in plain} == plain


def test_ids_that_resemble_one_another_are_spread_over_the_shards():
    sharded = ShardedDict[None]()
    for number in range(64_000):
        key = f"sensor-{number}"
        sharded.of(key)[key] = None
    sizes = [len(shard) for shard in sharded.shards]
    assert 800 < min(sizes) < max(sizes) < 1200
