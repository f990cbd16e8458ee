"""Limits of the endpoint, read from its environment."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.deployments.endpoint.http.limits import Limits, read_limits


def test_limits_come_from_the_environment() -> None:
    assert read_limits({}) == Limits()
    limits = read_limits({"BLOOMERY_SERVE_ROWS": "5", "BLOOMERY_SERVE_BODY_SECONDS": "0.5"})
    assert (limits.rows, limits.body_seconds) == (5, 0.5)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "nan"])
def test_a_limit_that_is_not_a_number_above_0_is_rejected(text) -> None:
    with pytest.raises(SettingInvalid, match="BLOOMERY_SERVE_ROWS"):
        read_limits({"BLOOMERY_SERVE_ROWS": text})
