"""The recipe: one file that configures a run from raw rows to a served model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.documents.documents import Document, read_document
from bloomery.data_contracts.documents.durations import Duration
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid, SettingInvalid
from bloomery.data_contracts.monitoring import Monitor
from bloomery.data_contracts.odcs.contract import Contract, read_contract
from bloomery.data_contracts.recipe_sections.approval import ApprovalSetting, PromotionTerms
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.recipe_sections.periods import (
    PERIOD_EXAMPLES,
    PeriodLength,
    last_complete_period,
    period_start,
)
from bloomery.data_contracts.recipe_sections.serve import Serve
from bloomery.data_contracts.records.provenance import RecipeDocument
from bloomery.data_contracts.records.scores import ScoreSetting, default_score
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.flows.recipe.feature_checks import check_sample_rates
from bloomery.flows.recipe.file_column_checks import check_file_columns
from bloomery.flows.recipe.fine_tuning import inherit_options
from bloomery.flows.recipe.limit_checks import find_misplaced_limits
from bloomery.flows.recipe.overrides import apply_overrides
from bloomery.flows.recipe.recipe_files import find_recipe
from bloomery.flows.recipe.schedule import Schedule
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import Compression, CompressionOrAuto
from bloomery.models.evaluation.gates import Gates, RecentData
from bloomery.models.features.config import Features
from bloomery.models.inference.serving_device import resolve_device
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.models.training.search_space import require_valid_space
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints
from bloomery.tasks.train.user_code import bundle_user_code

# Sections that do not affect what a run produces.
# `serve` does so by `compression.serving_device`, which depends on the machine.
_OPERATION_KEYS = {"schedule", "gpu_slots", "monitor", "watch", "approval", "serve"}
CONTRACTS = Path(__file__).resolve().parents[2] / "data_contracts" / "contracts"


class Watch(Document):
    """How often the flow `watch` checks the data for changes."""

    interval: Duration


class ContractReference(Document):
    """A contract file with the table that the recipe uses."""

    file: Annotated[str, Field(description="a contract file beside the recipe or in data_contracts/contracts/")]
    table: Annotated[str | None, Field(description="the table, if the contract has several")] = None


def _as_contract_reference(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


class RecipeFile(Document):
    """The content of a recipe file."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z][a-z0-9-]{0,40}$",
            description="name of the registered model and the bento: lowercase letters, digits and dashes",
        ),
    ]
    description: str = ""
    data: DataSource
    contract: Annotated[
        ContractReference,
        BeforeValidator(_as_contract_reference),
        Field(description="a contract file beside the recipe or in data_contracts/contracts/, or `file` and `table`"),
    ]
    features: Features
    engine: Annotated[
        Literal["auto", "local", "spark"],
        Field(
            description="engine of the stage prepare; auto takes Spark if a cluster is configured and the data needs it"
        ),
    ] = "auto"
    spark: SparkConfig = SparkConfig()
    model: Model
    training: Annotated[Training, Field(description="omitted for an imported network")] = Training()
    score: ScoreSetting = None
    compression: CompressionOrAuto = Compression()
    budget: Budget = Budget()
    gates: Gates = Gates()
    serve: Serve = Serve()
    schedule: Annotated[
        Schedule | None, Field(description="when it runs automatically while `bloomery up` is active")
    ] = None
    gpu_slots: Annotated[
        int,
        Field(ge=0, description="number of GPUs that a training reserves; 0 shares them"),
    ] = 1
    monitor: Annotated[Monitor, Field(description="how the served version is monitored")] = Monitor()
    approval: Annotated[
        ApprovalSetting,
        Field(description="`required`, or a `timeout` such as 24h: a person decides before each promotion"),
    ] = None
    period_length: Annotated[
        PeriodLength | None, Field(description="month, week, day or hour, if the data source names a {period:%Y-%m}")
    ] = None

    watch: Annotated[
        Watch | None,
        Field(description="check for new data at this `interval`, such as 5m, and start a run when it is complete"),
    ] = None

    @model_validator(mode="after")
    def _shared_settings_are_at_the_top(self) -> Self:
        if self.training.score not in (None, self.score):
            raise ValueError("training.score: the score belongs to the whole recipe; write `score:` beside `training:`")
        if self.compression.serving_device is not None and type(self) is RecipeFile:
            raise ValueError("compression.serving_device: write `serve: {device: …}` beside `compression:`")
        return self

    @model_validator(mode="after")
    def _periods_are_named(self) -> Self:
        if self.period_length is not None and not self.data.is_dated and not self._has_period:
            raise ValueError("period_length: no source contains the period, such as rows-{period:%Y-%m}.csv")
        if self.period_length is None and self.data.is_dated:
            raise ValueError("period_length: missing; data that names a period needs month, week, day or hour")
        return self

    @property
    def _has_period(self) -> bool:
        return False


class Recipe(RecipeFile):
    """A recipe with its contract read and its paths made absolute: everything a run needs."""

    contract: Contract  # type: ignore[assignment]  # replaces the reference by the contract of one table
    period: str | None = None  # the period of its data

    @property
    def _has_period(self) -> bool:
        return self.period is not None

    @property
    def title(self) -> list[str]:
        """Returns its name, and the period if it has one."""
        return [self.name] if self.period is None else [self.name, self.period]

    @property
    def promotion_terms(self) -> PromotionTerms:
        return PromotionTerms(approval=self.approval, period=self.period)

    @property
    def engine_settings(self) -> Engine:
        return Engine(kind=self.engine, spark=self.spark)

    @property
    def document(self) -> RecipeDocument:
        """Returns the complete recipe, which the model version records."""
        return RecipeDocument(recipe=self.model_dump(mode="json", by_alias=True))

    @property
    def digest(self) -> str:
        """Returns the digest of everything that affects what a run produces."""
        return digest_of_document(self.model_dump(mode="json", by_alias=True, exclude=_OPERATION_KEYS))


def read_recipe(reference: str, period: str | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads and checks the recipe that `reference` names: by a name or a path (`recipe_files.py`).

    A dated recipe is read for `period`, or for the latest complete period if none is given. `overrides` replace values
    of the file; they have the form of a recipe.

    Raises:
        SettingInvalid: the recipe has no such period.
        DataMissing: there is no such recipe or contract.
        RecipeInvalid, ContractInvalid: a key is unknown, a value has the wrong type, or recipe and contract are
            inconsistent.
    """
    path = find_recipe(reference)
    file = apply_overrides(read_document(path, RecipeFile, RecipeInvalid), overrides or {}, path)
    contract = _read_table(file.contract, path)
    period = _resolve_period(file, period, path)
    data = file.data.with_absolute_paths(path.parent)
    model = bundle_user_code(file.model, path.parent)
    recipe = Recipe(
        **{
            **dict(file),
            "contract": contract,
            "features": add_input_checkpoints(file.features, model),
            "data": data if period is None else data.for_period(period),
            "period": period,
            "model": model,
            "training": _with_score(_with_absolute_start(file.training, path.parent), file),
            "compression": _complete_compression(file),
            "monitor": _with_absolute_labels(file.monitor, path.parent),
            "gates": _with_absolute_recent(file.gates, path.parent),
        }
    )
    require_valid_space(recipe.model, recipe.training)
    _require_consistent(recipe, path)
    return recipe


def _read_table(reference: ContractReference, recipe: Path) -> Contract:
    """Reads the contract of the table that the recipe uses."""
    path = _find_contract(reference.file, recipe)
    contract = read_contract(path)
    tables = ", ".join(table.name for table in contract.schema_)
    if reference.table is None and len(contract.schema_) > 1:
        raise RecipeInvalid(
            f"{recipe.name}: contract: {path.name} has {len(contract.schema_)} tables, and the recipe names none",
            required=f"one of {tables}",
            where=str(recipe),
            remedy=f"write `contract: {{file: {reference.file}, table: NAME}}` with one of them",
        )
    if reference.table is not None and reference.table not in [table.name for table in contract.schema_]:
        raise RecipeInvalid(
            f"{recipe.name}: contract.table: {path.name} has no table {reference.table!r}",
            required=f"one of {tables}" if tables else "a contract with a table",
            where=str(recipe),
            remedy="correct `contract.table`",
        )
    return contract.select_table(reference.table)


def _require_consistent(recipe: Recipe, path: Path) -> None:
    input_columns = {column for source in recipe.features.inputs for column in source.columns}
    problems = [
        *find_inconsistencies(recipe.features, recipe.model, recipe.contract, recipe.training, recipe.compression),
        *check_sample_rates(recipe.features, recipe.data),
        *check_file_columns(recipe.features, recipe.data, recipe.contract),
        *find_misplaced_limits(recipe.features.task, recipe.budget, recipe.gates, recipe.training.slices, recipe.score),
        *(
            f"monitor.columns names {name!r}, which is not an input of the network"
            for name in recipe.monitor.columns or ()
            if name not in input_columns
        ),
    ]
    if recipe.gates.beats is not None and (recipe.training.privacy is not None or not recipe.training.baselines):
        cause = "private training has no baselines" if recipe.training.baselines else "training.baselines is false"
        problems.append(f"gates.beats compares with baselines, but {cause}; leave `beats` out")
    if recipe.features.task == "embedding":
        labels = {"monitor.labels": recipe.monitor.labels, "gates.recent.labels": recipe.gates.recent.labels}
        problems += [f"{name}: no label arrives for a vector; leave it out" for name in labels if labels[name]]
    if recipe.features.task == "tagging":
        labels = {"monitor.labels": recipe.monitor.labels, "gates.recent.labels": recipe.gates.recent.labels}
        problems += [f"{name}: tags that arrive later are not read; leave it out" for name in labels if labels[name]]
    if problems:
        raise RecipeInvalid(
            "\n".join(f"{path.name}: {problem}" for problem in problems),
            required="a recipe that is consistent with its contract",
            where=str(path),
            remedy="correct the recipe, or the contract",
        )


def _resolve_period(recipe: RecipeFile, period: str | None, path: Path) -> str | None:
    if recipe.period_length is None:
        if period is not None:
            raise SettingInvalid(
                f"the period {period} is given, but {path.name} has no periods",
                required="a recipe with `period_length`, and {period:…} in its data source",
                where=str(path),
                remedy="leave the period out, or add both to the recipe",
            )
        return None
    if period is None:
        return last_complete_period(datetime.now(UTC), recipe.period_length)
    try:
        period_start(period, recipe.period_length)
    except ValueError as failure:
        raise SettingInvalid(
            str(failure),
            required=f"a {recipe.period_length}, such as {PERIOD_EXAMPLES[recipe.period_length]}",
            where=f"--period; {path.name} has period_length: {recipe.period_length}",
            remedy="correct the period",
        ) from failure
    return period


def _with_score(training: Training, file: RecipeFile) -> Training:
    """Returns the training with the recipe's score, which also selects the best epoch.

    The default score changes nothing: a recipe that states it trains the same network as one that does not. The loss
    selects the epoch then, since it tells equally accurate epochs apart.
    """
    if file.score is None or file.score == default_score(file.features.task):
        return training
    values: dict[str, Any] = {"score": file.score}
    is_trained = file.model.kind not in ("imported", "boosted_trees") and training.privacy is None
    if is_trained and "best_by" not in training.model_fields_set:
        values["best_by"] = "score"
    return training.model_copy(update=values)


def _complete_compression(file: RecipeFile) -> Compression:
    compression = inherit_options(file.compression, file.training)
    return compression.model_copy(update={"serving_device": resolve_device(file.serve)})


def _with_absolute_start(training: Training, folder: Path) -> Training:
    if training.start_from is None:
        return training
    return training.model_copy(update={"start_from": training.start_from.absolute(folder)})


LabelledT = TypeVar("LabelledT", Monitor, RecentData)


def _with_absolute_recent(gates: Gates, folder: Path) -> Gates:
    if gates.recent.labels is None:
        return gates
    return gates.model_copy(update={"recent": _with_absolute_labels(gates.recent, folder)})


def _with_absolute_labels(section: LabelledT, folder: Path) -> LabelledT:
    if section.labels is None:
        return section
    return section.model_copy(update={"labels": str(folder / Path(section.labels).expanduser())})


def _find_contract(reference: str, recipe: Path) -> Path:
    for folder in (recipe.parent, CONTRACTS):
        if (folder / reference).is_file():
            return (folder / reference).resolve()
    raise DataMissing(
        f"there is no contract {reference!r}",
        required="an Open Data Contract Standard file",
        where=f"{recipe.parent} and {CONTRACTS}",
        remedy=f"correct `contract` in {recipe}",
    )
