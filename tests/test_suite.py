"""The order of the suite: the files named for it exist, and tests that share Spark have the name that it goes by."""

from __future__ import annotations

import pytest

from tests.conftest import LONGEST, ROOT


def test_the_files_that_come_first_exist() -> None:
    assert [line for line in LONGEST.read_text().split() if not (ROOT / line).is_file()] == []


def test_all_tests_that_share_spark_go_to_one_worker(request: pytest.FixtureRequest) -> None:
    sharing = [item for item in request.session.items if "one_spark" in getattr(item, "fixturenames", ())]
    assert [item.nodeid for item in sharing if "::test_spark_" not in item.nodeid] == []
