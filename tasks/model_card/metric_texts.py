"""What the metrics of a model card mean, by task."""

from __future__ import annotations

from bloomery.data_contracts.records.tensor_layout import Task

_CLASSES = (
    "Accuracy, recall and precision, with Wilson's 95% score intervals; log loss in nats; balanced accuracy and macro "
    "F1, in which classes count alike; the area under the ROC curve (AUC) and average precision, of two classes for "
    "the rarer one, of more as the mean over classes."
)
_TEXTS: dict[Task, tuple[str, ...]] = {
    "classification": (_CLASSES,),
    "ordinal": (
        _CLASSES,
        "The classes have an order. Quadratic weighted kappa is the agreement beyond chance, in which an error counts "
        "by the square of its distance; MAE in ranks is the mean distance between the true and the predicted class. "
        "Their intervals are from a bootstrap of rows.",
    ),
    "multilabel": (
        "A label is predicted if its probability is at least 0.5. Micro F1 pools all labels, macro F1 and mean "
        "average precision are means over the labels that rows have; subset accuracy is the share of rows with "
        "exactly the true labels, and Hamming loss the share of wrong decisions about single labels. Intervals are "
        "from a bootstrap of rows; recall and precision of a label have Wilson's 95% score intervals.",
    ),
    "embedding": (
        "The positives of the test split are ranked by the cosine of their vectors to that of each text; other "
        "positives of the same text are left out. nDCG@10 is the mean of 1 / log2(1 + rank) down to rank 10, recall@k "
        "the share of positives with a rank of at most k. Intervals are Wilson's of a recall, and from a bootstrap of "
        "rows of other scores.",
    ),
    "multitask": (
        "Mean accuracy, mean balanced accuracy (the mean recall of the classes) and mean log loss are means over the "
        "labels, each among the rows that have the label. Exact match is the share of rows in which all known labels "
        "are right. The 95% interval of a mean combines those of the labels by their correlations. Recall and "
        "precision of each class, exact match, and the accuracy of each label, have Wilson's 95% score intervals.",
    ),
    "tagging": (
        "Tag accuracy is the share of words with the right tag. An entity is right if its first and last word and its "
        "type are, as of CoNLL; entity F1 is the harmonic mean of entity precision and recall over all entities. Only "
        "words that the network reads count: those beyond the `length` of the input are cut off. Intervals, and paired "
        "differences between candidates, are from a bootstrap of sentences, whose words depend on each other.",
    ),
    "multioutput": (
        "The score is the mean over the outputs of root mean squared error, mean absolute error or R², in deviations "
        "of each label among the training rows, with a 95% interval from a block bootstrap that draws neighbouring "
        "rows together. The errors of each output are in its units. Rows without its label do not count for an output.",
    ),
    "regression": (
        "Root mean squared error (RMSE) in the units of the label, with a 95% interval from a block bootstrap that "
        "draws neighbouring rows together; mean absolute error (MAE); mean absolute percentage error (MAPE); R².",
    ),
}


def describe_metrics(task: Task) -> list[str]:
    return list(_TEXTS[task])
