"""Drafts the score, the network and the gates of a recipe that tags words."""

from __future__ import annotations

import math

from ruamel.yaml.comments import CommentedMap

from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.planning.word_tags import WordTags
from bloomery.tasks.scaffolding.yaml_writer import add_comment

_STEPS_SEEN = 6_000_000  # words that a recurrent network is shown in all epochs: a minute or so on two cores


def score_of_tags(tags: WordTags) -> tuple[str, str]:
    """Returns the score that suits the tags, and why."""
    score = "entity_f1" if tags.has_entities else "tag_accuracy"
    noun = "precision and recall of whole entities" if tags.has_entities else "the share of words with the right tag"
    return score, f"The score that selects epochs, candidates and versions: {noun}."


def draft_tagging_network(num_rows: int, length: int) -> tuple[CommentedMap, int]:
    """Returns the section model, and the number of epochs."""
    model = CommentedMap(kind="rnn", hidden=128, bidirectional=True, dropout=0.3)
    return model, min(max(_STEPS_SEEN // (num_rows * length), 5), 30)


def draft_tag_gates(label: LabelPlan, num_test: int) -> CommentedMap:
    margin = min(max(math.ceil(100 / math.sqrt(num_test)) / 100, 0.02), 1.0)
    gates = CommentedMap(champion_drop=margin)
    tag = max(label.classes, key=lambda pair: pair[1])[0]
    always = f"The tag {tag} alone is right for {label.majority_share:.1%} of the words. State a `min_score`, too."
    add_comment(gates, "champion_drop", always, 2)
    return gates
