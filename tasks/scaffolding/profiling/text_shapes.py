"""Measures the texts of a source: sentences and titles have words, codes and names of things hardly any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.scaffolding.profiling.profiler import SourceProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE

_WORD = r"\pL{2,}"
_MAX_ROWS = 50_000  # that are measured
_QUANTILE = 0.95
_MIN_LENGTH = 8  # characters of the longest text: shorter ones have no three words


def measure_texts(profile: SourceProfile, scratch: Path) -> SourceProfile:
    """Returns the profile with `mean_words` and `usual_length` of the columns of text, from the rows in `scratch`."""
    names = [
        column.name
        for column in profile.columns
        if column.logical_type == "string" and (column.max_length or 0) >= _MIN_LENGTH and not column.names_files
    ]
    words: dict[str, list[np.ndarray]] = {name: [] for name in names}
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in names}
    num_rows = 0
    for batch in read_batches(scratch / ROWS_FILE, names) if names else ():
        for name in names:
            texts = batch[name].drop_null()
            words[name].append(pc.count_substring_regex(texts, _WORD).to_numpy(zero_copy_only=False))
            lengths[name].append(pc.utf8_length(texts).to_numpy(zero_copy_only=False))
        num_rows += batch.num_rows
        if num_rows >= _MAX_ROWS:
            break
    columns = []
    for column in profile.columns:
        if column.name in names and any(counts.size for counts in words[column.name]):
            mean = float(np.concatenate(words[column.name]).mean())
            length = int(np.quantile(np.concatenate(lengths[column.name]), _QUANTILE, method="higher"))
            column = column.model_copy(update={"mean_words": mean, "usual_length": length})
        columns.append(column)
    return profile.model_copy(update={"columns": tuple(columns)})
