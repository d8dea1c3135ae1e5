"""Numbers that settings may have: neither infinite nor undefined ones pass a check."""

import math
from collections.abc import Callable
from functools import partial

import pytest

from sft_lightning.utils.errors import InputError, check_decay, check_fraction, check_min, check_positive

CHECKS: list[Callable[..., None]] = [partial(check_min, 0), check_positive, check_fraction, check_decay]


@pytest.mark.parametrize("check", CHECKS)
def test_settings_are_finite_numbers(check: Callable[..., None]) -> None:
    check(size=0.5)
    for value in (math.nan, math.inf, -math.inf, -1.0):
        with pytest.raises(InputError, match=f"size is {value}: give a"):
            check(size=value)
