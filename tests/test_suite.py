"""The order of the test suite: `longest.txt` names existing files, and all tests that share Spark have its prefix."""

from __future__ import annotations

import pytest

from tests.scheduling import LONGEST, ROOT


def test_the_files_in_longest_txt_exist() -> None:
    assert [line for line in LONGEST.read_text().split() if not (ROOT / line).is_file()] == []


def test_all_tests_that_share_spark_run_in_one_worker(request: pytest.FixtureRequest) -> None:
    spark_tests = [item for item in request.session.items if "shared_spark" in getattr(item, "fixturenames", ())]
    assert [item.nodeid for item in spark_tests if "::test_spark_" not in item.nodeid] == []
