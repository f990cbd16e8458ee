"""The recipe: one file that says how rows become a served model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from data_contracts.contract import Contract, read_contract
from data_contracts.digests import digest_of_document
from data_contracts.documents import Document, read_document
from data_contracts.errors import DataMissing, RecipeInvalid
from data_contracts.means import Engine, SparkMeans
from data_contracts.monitoring import Monitor
from data_contracts.sources import Data
from flows.misfits import misfits
from flows.schedule import Schedule
from models.compression.budget import Budget
from models.compression.config import Compression
from models.config import Features, Gates, Recent, misplaced_limits
from models.networks.config import Model
from models.search import require_possible
from models.training.config import Training
from tasks.bring import bring

_OF_ITS_OPERATION = {"schedule", "gpu_slots", "monitor"}
RECIPES = Path(__file__).resolve().parent.parent / "deployments"
CONTRACTS = Path(__file__).resolve().parent.parent / "data_contracts"


def _compression(stated: Any) -> Any:
    """`compression: auto` searches for candidates, with everything left as it is."""
    return {"explore": True} if stated == "auto" else stated


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
    contract: Annotated[str, Field(description="a file beside the recipe or in data_contracts/")]
    features: Features
    engine: Annotated[
        Literal["auto", "local", "spark"],
        Field(description="what prepares the data; auto takes Spark where a cluster is named and the data needs it"),
    ] = "auto"
    spark: SparkMeans = SparkMeans()
    model: Model
    training: Annotated[Training, Field(description="left out for a network that comes trained")] = Training()
    compression: Annotated[Compression, BeforeValidator(_compression)] = Compression()
    budget: Budget = Budget()
    gates: Gates = Gates()
    schedule: Annotated[Schedule | None, Field(description="when it runs by itself, where `bloomery up` stands")] = None
    gpu_slots: Annotated[
        int,
        Field(ge=0, description="how many of the machine's cards a training on a GPU has for itself; 0 shares them"),
    ] = 1
    monitor: Annotated[Monitor, Field(description="what is watched of the version that answers")] = Monitor()


class Recipe(RecipeFile):
    """A recipe with its contract read and its paths made absolute: all that a run needs."""

    contract: Contract  # type: ignore[assignment]  # the file's name has become what it names

    @property
    def means(self) -> Engine:
        return Engine(kind=self.engine, spark=self.spark)

    @property
    def digest(self) -> str:
        """Of all that decides what a run makes."""
        return digest_of_document(
            self.model_dump(mode="json", by_alias=True, exclude={"monitor", "schedule", "gpu_slots"})
        )


def read_recipe(reference: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that `reference` names: a name in `deployments/`, or a path.

    `changes` are single values to put in the place of the file's, as a document of the same form.

    Raises:
        DataMissing: there is no such recipe or contract.
        RecipeInvalid, ContractInvalid: a key is unknown, a value is of the wrong kind, or recipe and contract do not
            fit each other.
    """
    path = _find(reference)
    stated = changed(read_document(path, RecipeFile, RecipeInvalid), changes or {}, path)
    contract = read_contract(_find_contract(stated.contract, path))
    recipe = Recipe(
        **{
            **dict(stated),
            "contract": contract,
            "data": stated.data.absolute(path.parent),
            "model": bring(stated.model, path.parent),
            "training": _with_absolute_start(stated.training, path.parent),
            "monitor": _with_absolute_labels(stated.monitor, path.parent),
            "gates": stated.gates.model_copy(
                update={"recent": _with_absolute_labels(stated.gates.recent, path.parent)}
            ),
        }
    )
    require_possible(recipe.model, recipe.training)
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


def changed(stated: RecipeFile, changes: Mapping[str, Any], path: Path) -> RecipeFile:
    """The recipe with `changes` in it. Raises RecipeInvalid where it is none any more."""
    if not changes:
        return stated
    document = _merged(stated.model_dump(mode="json", by_alias=True, exclude_unset=True), changes)
    try:
        return RecipeFile.model_validate(document)
    except ValidationError as failure:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in failure.errors())
        raise RecipeInvalid(
            f"{path.name} with what this run changes: {told}",
            required="values that the recipe could have in its file",
            where=f"the parameters of the run: {', '.join(changes)}",
            remedy="mend them, or leave them out",
        ) from failure


def _merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, but for one whose `kind` becomes another; all else is replaced."""
    merged = dict(document)
    for key, value in changes.items():
        before = merged.get(key)
        if (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and before.get("kind") == value.get("kind", before.get("kind"))
        ):
            merged[key] = _merged(before, value)
        else:
            merged[key] = value
    return merged


def _with_absolute_start(training: Training, folder: Path) -> Training:
    if training.start_from is None:
        return training
    return training.model_copy(update={"start_from": training.start_from.absolute(folder)})


LabelledT = TypeVar("LabelledT", Monitor, Recent)


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
