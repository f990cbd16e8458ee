"""Cron expressions of five fields, read as Prefect reads them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def require_cron(expression: str) -> str:
    """Returns `expression`.

    Raises:
        ValueError: it is not a cron expression of five fields.
    """
    from croniter import croniter

    if len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError(f"{expression!r} is not a cron expression of five fields, such as '0 3 * * *' for 03:00 daily")
    return expression


CronExpression = Annotated[str, AfterValidator(require_cron)]
