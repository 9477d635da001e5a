"""The numbers of the durabilities stand in columns and in tables by index."""

from __future__ import annotations

import numpy as np
from longshort_service.durability import NEVER, Durability


def test_durabilities_are_indices_in_the_order_of_what_they_promise():
    assert [each.value for each in sorted(Durability)] == [0, 1, 2]
    assert Durability.NONE < Durability.BEHIND < Durability.SYNC


def test_never_is_above_every_step_that_a_column_holds():
    assert np.array([NEVER], np.int64)[0] == np.iinfo(np.int64).max
