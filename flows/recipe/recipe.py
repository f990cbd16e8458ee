"""The recipe: one file that says how rows become a served model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.documents.documents import Document, read_document
from bloomery.data_contracts.documents.durations import Duration
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid, SettingInvalid
from bloomery.data_contracts.monitoring import Monitor
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.recipe_sections.approval import StatedApproval, Terms
from bloomery.data_contracts.recipe_sections.data_source import Data
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkMeans
from bloomery.data_contracts.recipe_sections.periods import EXAMPLES, Every, last_whole, start_of
from bloomery.data_contracts.records.provenance import Stated
from bloomery.flows.recipe.consistency import misfits
from bloomery.flows.recipe.overrides import changed
from bloomery.flows.recipe.schedule import Schedule
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import Compression, CompressionOrAuto
from bloomery.models.features.config import Features, Gates, RecentData, misplaced_limits
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.models.training.search_space import require_valid_space
from bloomery.tasks.train.user_code import bring

_OF_ITS_OPERATION = {"schedule", "gpu_slots", "monitor", "watch", "approval"}
RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
CONTRACTS = Path(__file__).resolve().parents[2] / "data_contracts" / "contracts"


class Watch(Document):
    """How often a light flow looks whether the data has changed."""

    every: Duration


class RecipeFile(Document):
    """A recipe as it stands in its file."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z][a-z0-9-]{0,40}$",
            description="of the registered model and the bento: small letters, digits and dashes",
        ),
    ]
    description: str = ""
    data: Data
    contract: Annotated[str, Field(description="a file beside the recipe or in data_contracts/contracts/")]
    features: Features
    engine: Annotated[
        Literal["auto", "local", "spark"],
        Field(description="what prepares the data; auto takes Spark where a cluster is named and the data needs it"),
    ] = "auto"
    spark: SparkMeans = SparkMeans()
    model: Model
    training: Annotated[Training, Field(description="left out for a network that comes trained")] = Training()
    compression: CompressionOrAuto = Compression()
    budget: Budget = Budget()
    gates: Gates = Gates()
    schedule: Annotated[Schedule | None, Field(description="when it runs by itself, where `bloomery up` stands")] = None
    gpu_slots: Annotated[
        int,
        Field(ge=0, description="how many of the machine's cards a training on a GPU has for itself; 0 shares them"),
    ] = 1
    monitor: Annotated[Monitor, Field(description="what is watched of the version that answers")] = Monitor()
    approval: Annotated[
        StatedApproval, Field(description="`required`, or a `timeout` such as 24h: a person decides before a promotion")
    ] = None
    every: Annotated[
        Every | None, Field(description="month, week, day or hour: the periods of data that names them, {period:%Y-%m}")
    ] = None

    watch: Annotated[
        Watch | None,
        Field(description="look for new data as often as `every` says, such as 5m, and run once it is there"),
    ] = None

    @model_validator(mode="after")
    def _periods_are_named(self) -> Self:
        if self.every is not None and not self.data.is_dated and not self._is_of_one_period:
            raise ValueError("every: no source says where the period stands, such as rows-{period:%Y-%m}.csv")
        if self.every is None and self.data.is_dated:
            raise ValueError("every: data that names a period needs its length: month, week, day or hour")
        return self

    @property
    def _is_of_one_period(self) -> bool:
        return False


class Recipe(RecipeFile):
    """A recipe with its contract read and its paths made absolute: all that a run needs."""

    contract: Contract  # type: ignore[assignment]  # the file's name has become what it names
    period: str | None = None  # that its data is of

    @property
    def _is_of_one_period(self) -> bool:
        return self.period is not None

    @property
    def title(self) -> list[str]:
        """Its name, and the period if it has one."""
        return [self.name] if self.period is None else [self.name, self.period]

    @property
    def terms(self) -> Terms:
        return Terms(approval=self.approval, period=self.period)

    @property
    def means(self) -> Engine:
        return Engine(kind=self.engine, spark=self.spark)

    @property
    def stated(self) -> Stated:
        """All that it says, for the version to remember."""
        return Stated(recipe=self.model_dump(mode="json", by_alias=True))

    @property
    def digest(self) -> str:
        """Of all that decides what a run makes."""
        return digest_of_document(self.model_dump(mode="json", by_alias=True, exclude=_OF_ITS_OPERATION))


def read_recipe(reference: str, period: str | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that `reference` names: a name in `deployments/`, or a path; a dated one for `period`.

    Without a period, a dated recipe is for the newest one that has ended.

    `changes` are single values to put in the place of the file's, as a document of the same form.

    Raises:
        SettingInvalid: the recipe knows no such period.
        DataMissing: there is no such recipe or contract.
        RecipeInvalid, ContractInvalid: a key is unknown, a value is of the wrong kind, or recipe and contract do not
            fit each other.
    """
    path = _find(reference)
    stated = changed(read_document(path, RecipeFile, RecipeInvalid), changes or {}, path)
    contract = read_contract(_find_contract(stated.contract, path))
    period = _period(stated, period, path)
    data = stated.data.absolute(path.parent)
    recipe = Recipe(
        **{
            **dict(stated),
            "contract": contract,
            "data": data if period is None else data.of_period(period),
            "period": period,
            "model": bring(stated.model, path.parent),
            "training": _with_absolute_start(stated.training, path.parent),
            "monitor": _with_absolute_labels(stated.monitor, path.parent),
            "gates": _with_absolute_recent(stated.gates, path.parent),
        }
    )
    require_valid_space(recipe.model, recipe.training)
    read = {column for source in recipe.features.inputs for column in source.columns}
    problems = [
        *misfits(recipe.features, recipe.model, recipe.contract, recipe.training, recipe.compression),
        *misplaced_limits(recipe.features.task, recipe.budget, recipe.gates, recipe.training.slices),
        *(
            f"monitor.columns names {name!r}, which the network does not read"
            for name in recipe.monitor.columns or ()
            if name not in read
        ),
    ]
    if problems:
        raise RecipeInvalid(
            "\n".join(f"{path.name}: {problem}" for problem in problems),
            required="features that the contract's columns can give",
            where=str(path),
            remedy="mend the recipe's features, or the contract",
        )
    return recipe


def _period(stated: RecipeFile, period: str | None, path: Path) -> str | None:
    if stated.every is None:
        if period is not None:
            raise SettingInvalid(
                f"the period {period} is named, and {path.name} is for all times",
                required="a recipe with `every`, and {period:…} in its data",
                where=str(path),
                remedy="leave the period out, or let the recipe say where each period's data lies",
            )
        return None
    if period is None:
        return last_whole(datetime.now(UTC), stated.every)
    try:
        start_of(period, stated.every)
    except ValueError as failure:
        raise SettingInvalid(
            str(failure),
            required=f"a {stated.every}, such as {EXAMPLES[stated.every]}",
            where=f"--period; {path.name} says every: {stated.every}",
            remedy="mend the period",
        ) from failure
    return period


def _with_absolute_start(training: Training, folder: Path) -> Training:
    if training.start_from is None:
        return training
    return training.model_copy(update={"start_from": training.start_from.absolute(folder)})


LabelledT = TypeVar("LabelledT", Monitor, RecentData)


def _with_absolute_recent(gates: Gates, folder: Path) -> Gates:
    if gates.recent.labels is None:
        return gates
    return gates.model_copy(update={"recent": _with_absolute_labels(gates.recent, folder)})


def _with_absolute_labels(stated: LabelledT, folder: Path) -> LabelledT:
    if stated.labels is None:
        return stated
    return stated.model_copy(update={"labels": str(folder / Path(stated.labels).expanduser())})


def known_recipes() -> list[str]:
    """The names of the recipes that come with Bloomery."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in ("compose", "prefect"))


def _find(reference: str) -> Path:
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path.resolve()
    elif (RECIPES / f"{reference}.yaml").is_file() and reference in known_recipes():
        return RECIPES / f"{reference}.yaml"
    raise DataMissing(
        f"there is no recipe {reference!r}",
        required=f"one of {', '.join(known_recipes())}, or the path of a YAML file",
        where=f"{RECIPES} and {Path.cwd()}",
        remedy="mend the name or the path",
    )


def _find_contract(reference: str, recipe: Path) -> Path:
    for folder in (recipe.parent, CONTRACTS):
        if (folder / reference).is_file():
            return (folder / reference).resolve()
    raise DataMissing(
        f"there is no contract {reference!r}",
        required="an Open Data Contract Standard file",
        where=f"{recipe.parent} and {CONTRACTS}",
        remedy=f"mend `contract` in {recipe}",
    )
