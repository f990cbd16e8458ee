"""Refuses an exported file that computes other outputs than what it was exported from."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.errors import ParityBroken


def require_parity(error: float, limit: float, *, compared: str, rows: str, path: Path, remedy: str) -> None:
    """Requires that the largest difference of an output, `error`, is at most `limit`.

    Args:
        compared: both programs, such as "ONNX Runtime and PyTorch".
        rows: the rows on which outputs were compared.

    Raises:
        ParityBroken: `error` is above `limit`, or not a number.
    """
    if not error <= limit:
        raise ParityBroken(
            f"{compared} differ by up to {error:.2g} in an output",
            required=f"at most {limit:.2g} on {rows}",
            where=str(path),
            remedy=remedy,
        )
