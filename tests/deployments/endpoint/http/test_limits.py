"""What an endpoint takes at most, as its environment says."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.deployments.endpoint.http.limits import Limits, read_limits


def test_limits_come_from_the_environment() -> None:
    assert read_limits({}) == Limits()
    stated = read_limits({"BLOOMERY_SERVE_ROWS": "5", "BLOOMERY_SERVE_BODY_SECONDS": "0.5"})
    assert (stated.rows, stated.body_seconds) == (5, 0.5)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "nan"])
def test_a_limit_that_is_no_number_above_0_is_refused(text) -> None:
    with pytest.raises(SettingInvalid, match="BLOOMERY_SERVE_ROWS"):
        read_limits({"BLOOMERY_SERVE_ROWS": text})
