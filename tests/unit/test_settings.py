"""Session settings: what they refuse and what they tell."""

from __future__ import annotations

import pytest

from coordinator.settings import Settings
from shardb.errors import SqlError


def test_other_time_zones_are_refused_by_name() -> None:
    settings = Settings()
    settings.set("TimeZone", "Etc/UTC")
    with pytest.raises(SqlError) as caught:
        settings.set("timezone", "Europe/Paris")
    assert caught.value.sqlstate == "0A000"
    assert settings.get("timezone") == "Etc/UTC"


def test_a_driver_that_asks_for_its_own_zone_is_told_of_utc() -> None:
    settings = Settings()
    settings.start("TimeZone", "Europe/Paris")
    assert dict(settings.reported())["TimeZone"] == "UTC"
