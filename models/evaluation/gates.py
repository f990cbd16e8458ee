"""The `gates` section of a recipe: what a packaged version must reach to replace the champion."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.durations import Duration
from bloomery.data_contracts.records.scores import Score


class RecentData(Document):
    """The recent logged rows, of the last `window`, that both versions predict once their labels have arrived."""

    window: Duration = timedelta(days=30)
    min_rows: Annotated[int, Field(ge=10, description="with fewer labelled rows, nothing is compared")] = 200
    labels: Annotated[
        str | None, Field(description="where labels arrive, as in `monitor`; default: labels/NAME in the state folder")
    ] = None


class Gates(Document):
    """The limits that a packaged version must meet to replace the champion."""

    min_accuracy: Annotated[float, Field(ge=0, le=1, description="minimum of the accuracy on the test split")] = 0.0
    min_score: Annotated[
        float | None, Field(description="minimum of the recipe's `score`, if more of it is better")
    ] = None
    champion_drop: Annotated[
        float,
        Field(gt=0, le=1, description="upper limit for the 95% interval of the paired drop against the champion"),
    ] = 0.01
    max_error: Annotated[
        float | None,
        Field(gt=0, description="maximum of the recipe's `score`, if it is an error, or else of a regression's RMSE"),
    ] = None
    champion_rise: Annotated[
        float,
        Field(
            gt=0,
            description="of an error such as RMSE: upper limit for the 95% interval of its relative rise",
        ),
    ] = 0.01
    beats: Annotated[
        Literal["baseline"] | None,
        Field(
            description="baseline: the version must be better than the majority class or the mean beyond chance, and "
            "not be shown to be worse than another baseline by more than champion_drop or champion_rise"
        ),
    ] = None
    num_rows: Annotated[int, Field(ge=1, description="held-out rows that are sent to the bento over HTTP")] = 100
    recent: Annotated[
        RecentData, Field(description="recent rows on which the version must not be worse either, by the same limit")
    ] = RecentData()

    def champion_limit(self, score: Score) -> float:
        """The upper limit for the degradation of `score` against the champion: a drop, or the rise of an error."""
        return self.champion_rise if score.is_error else self.champion_drop
