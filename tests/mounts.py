"""Mounts of disks that a test removes or makes read-only."""

from __future__ import annotations

import subprocess


def mount(*words: str) -> bool:
    """Calls the command `mount` and returns whether it succeeded. Not every user has the permission."""
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0
