"""The scores by which models are compared: names, directions and units. Their functions are in `models/evaluation`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.tensor_layout import Task

ScoreName = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auc",
    "average_precision",
    "log_loss",
    "rmse",
    "mae",
    "r2",
    "mape",
    "quantile_loss",
    "micro_f1",
    "label_macro_f1",
    "mean_average_precision",
    "subset_accuracy",
    "hamming_loss",
    "ndcg_at_10",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "mean_reciprocal_rank",
    "quadratic_kappa",
    "rank_mae",
    "mean_rmse",
    "mean_mae",
    "mean_r2",
    "mean_accuracy",
    "mean_balanced_accuracy",
    "exact_match",
    "mean_log_loss",
    "tag_accuracy",
    "entity_f1",
    "entity_precision",
    "entity_recall",
]


class ScoreFacts(NamedTuple):
    """The properties of a score.

    `is_error`: lower is better, and a degradation is a relative rise; of other scores it is a drop. `is_share`: it is
    formatted in percent. `has_label_unit`: it is in the units of the label.
    """

    title: str
    task: Task
    is_error: bool = False
    is_share: bool = True
    has_label_unit: bool = False


SCORES: dict[ScoreName, ScoreFacts] = {
    "accuracy": ScoreFacts("accuracy", "classification"),
    "balanced_accuracy": ScoreFacts("balanced accuracy", "classification"),
    "macro_f1": ScoreFacts("macro F1", "classification"),
    "auc": ScoreFacts("AUC", "classification"),
    "average_precision": ScoreFacts("average precision", "classification"),
    "log_loss": ScoreFacts("log loss", "classification", is_error=True, is_share=False),
    "rmse": ScoreFacts("RMSE", "regression", is_error=True, is_share=False, has_label_unit=True),
    "mae": ScoreFacts("MAE", "regression", is_error=True, is_share=False, has_label_unit=True),
    "r2": ScoreFacts("R²", "regression"),
    "mape": ScoreFacts("MAPE", "regression", is_error=True),
    "quantile_loss": ScoreFacts("quantile loss", "regression", is_error=True, is_share=False, has_label_unit=True),
    "micro_f1": ScoreFacts("micro F1", "multilabel"),
    "label_macro_f1": ScoreFacts("macro F1 over labels", "multilabel"),
    "mean_average_precision": ScoreFacts("mean average precision", "multilabel"),
    "subset_accuracy": ScoreFacts("subset accuracy", "multilabel"),
    "hamming_loss": ScoreFacts("Hamming loss", "multilabel", is_error=True),
    "ndcg_at_10": ScoreFacts("nDCG@10", "embedding"),
    "recall_at_1": ScoreFacts("recall@1", "embedding"),
    "recall_at_5": ScoreFacts("recall@5", "embedding"),
    "recall_at_10": ScoreFacts("recall@10", "embedding"),
    "mean_reciprocal_rank": ScoreFacts("mean reciprocal rank", "embedding"),
    "quadratic_kappa": ScoreFacts("quadratic weighted kappa", "ordinal"),
    "rank_mae": ScoreFacts("MAE in ranks", "ordinal", is_error=True, is_share=False),
    "mean_rmse": ScoreFacts("mean RMSE in deviations", "multioutput", is_error=True, is_share=False),
    "mean_mae": ScoreFacts("mean MAE in deviations", "multioutput", is_error=True, is_share=False),
    "mean_r2": ScoreFacts("mean R²", "multioutput"),
    "mean_accuracy": ScoreFacts("mean accuracy", "multitask"),
    "mean_balanced_accuracy": ScoreFacts("mean balanced accuracy", "multitask"),
    "exact_match": ScoreFacts("exact match", "multitask"),
    "mean_log_loss": ScoreFacts("mean log loss", "multitask", is_error=True, is_share=False),
    "tag_accuracy": ScoreFacts("tag accuracy", "tagging"),
    "entity_f1": ScoreFacts("entity F1", "tagging"),
    "entity_precision": ScoreFacts("entity precision", "tagging"),
    "entity_recall": ScoreFacts("entity recall", "tagging"),
}


def scores_of(task: Task) -> tuple[ScoreName, ...]:
    """The scores that measure predictions of `task`. Those of classes suit ordered classes, too."""
    tasks = ("ordinal", "classification") if task == "ordinal" else (task,)
    return tuple(name for name, facts in SCORES.items() if facts.task in tasks)


class Score(Document):
    """The score that selects epochs, trials, candidates and champions."""

    name: ScoreName
    quantile: Annotated[
        float | None, Field(gt=0, lt=1, description="quantile_loss alone: the quantile that is predicted")
    ] = None

    @model_validator(mode="after")
    def _has_its_quantile(self) -> Self:
        if self.name == "quantile_loss" and self.quantile is None:
            raise ValueError("quantile_loss needs a quantile, as in `{name: quantile_loss, quantile: 0.9}`")
        if self.name != "quantile_loss" and self.quantile is not None:
            raise ValueError(f"`quantile` belongs to quantile_loss, not to {self.name}: leave it out")
        return self

    @property
    def title(self) -> str:
        """The name for people, such as `macro F1`."""
        return self.facts.title if self.quantile is None else f"{self.facts.title} ({self.quantile:g})"

    @property
    def facts(self) -> ScoreFacts:
        """The direction, task and unit of the score."""
        return SCORES[self.name]

    @property
    def is_error(self) -> bool:
        """Whether a lower score is better."""
        return self.facts.is_error

    def suits(self, task: Task) -> bool:
        """Whether the score measures predictions of `task`."""
        return self.name in scores_of(task)

    def is_better(self, value: float, rival: float) -> bool:
        """Whether `value` is better than `rival`; False if one of them is not a number."""
        return value < rival if self.is_error else value > rival


def expand_score(value: Any) -> Any:
    """Returns `{name: macro_f1}` for `macro_f1`; other values are unchanged."""
    return {"name": value} if isinstance(value, str) else value


ScoreSetting = Annotated[
    Score | None,
    BeforeValidator(expand_score, json_schema_input_type=ScoreName | Score | None),
    Field(
        description="the score that selects epochs, trials, candidates and champions; "
        "default: accuracy, rmse of a regression, subset_accuracy of a multilabel task, ndcg_at_10 of an embedding, "
        "or tag_accuracy of a tagging task. "
        "quantile_loss needs {name: quantile_loss, quantile: 0.9}"
    ),
]

ACCURACY, RMSE, SUBSET_ACCURACY = Score(name="accuracy"), Score(name="rmse"), Score(name="subset_accuracy")
MEAN_RMSE, MEAN_ACCURACY = Score(name="mean_rmse"), Score(name="mean_accuracy")
_DEFAULTS: dict[Task, Score] = {
    "classification": ACCURACY,
    "regression": RMSE,
    "multilabel": SUBSET_ACCURACY,
    "embedding": Score(name="ndcg_at_10"),
    "ordinal": ACCURACY,
    "multioutput": MEAN_RMSE,
    "multitask": MEAN_ACCURACY,
    "tagging": Score(name="tag_accuracy"),
}


def default_score(task: Task) -> Score:
    """The score of a recipe that names none."""
    return _DEFAULTS[task]
