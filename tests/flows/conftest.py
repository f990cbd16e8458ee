"""State folders to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def copy(copy_of: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A finished state folder to break."""
    return copy_of(tmp_path / ".bloomery")
