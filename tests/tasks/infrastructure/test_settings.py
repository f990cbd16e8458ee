"""Settings from the environment: values that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.tasks.infrastructure.settings import require_state_folder, settings


@pytest.mark.parametrize(
    ("name", "value"),
    [("BLOOMERY_GRAMS_PER_KWH", "much"), ("BLOOMERY_PRICE_OF_HOUR", "0.35"), ("BLOOMERY_PRICE_OF_HOUR", "nan EUR")],
)
def test_an_invalid_price_is_rejected_when_settings_are_read(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    with pytest.raises(SettingInvalid, match=name):
        settings()
    monkeypatch.delenv(name)
    settings.cache_clear()


def test_a_state_folder_that_no_database_address_can_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "what?"))
    settings.cache_clear()
    with pytest.raises(SettingInvalid, match="question mark") as refusal:
        require_state_folder()
    assert "BLOOMERY_HOME" in refusal.value.remedy
    assert not (tmp_path / "what?").exists()
    settings.cache_clear()
