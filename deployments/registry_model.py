"""A version in MLflow's registry, as a python function: rows in the contract's columns in, predictions out.

It is the twin of the endpoint: it reads the artifacts of the bento, checks rows by the same rules and predicts with the
same code. MLflow loads it through `mlflow_loader.py`. It never imports torch.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.problems import RowsRefused, row_problem
from bloomery.data_contracts.serving.predictions import flatten_classes
from bloomery.data_contracts.serving.signatures import UNSIGNED_VARIABLE
from bloomery.data_contracts.validation.casting import cast_column
from bloomery.deployments.endpoint.asgi.media_rows import BASE64, parse_media_rows
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.limits import read_limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.inference.tagged_words import drop_unread

if TYPE_CHECKING:
    import pandas as pd

LOADER = "bloomery_model_loader"  # the name of `mlflow_loader.py` in a registered model
_LISTS = (list, tuple, np.ndarray)
_BATCH_ROWS, _BATCH_VALUES = 8_192, 1 << 24  # encoded at a time; fewer rows where these are wide
_PARSE = "_parse_json_data"  # of MLflow's scoring server
_MISSING = ("NoneType", "NaTType", "NAType")  # the last two are of pandas


def load_registry_model(artifacts: Path) -> RegistryModel:
    """Loads the version of a bento's artifacts. Raises as `LoadedVersion` does.

    Whoever may write to the registry is trusted, as with every model of MLflow. So where no key is trusted, such as on
    another machine, the signature may be of any key. A wrong signature never passes.
    """
    _accept_frames_in_requests()
    return RegistryModel(LoadedVersion(artifacts, {UNSIGNED_VARIABLE: "allowed", **os.environ}))


class RegistryModel:
    """A loaded version with the interface of MLflow's python functions."""

    def __init__(self, version: LoadedVersion) -> None:
        self.version = version
        self._batch_rows = max(min(_BATCH_ROWS, _BATCH_VALUES // version.encoder.layout.num_values), 1)
        self._inputs = frozenset(version.encoder.columns)
        columns = version.contract.columns
        self._columns = frozenset(name for column in columns for name in (column.name, column.physical_name) if name)
        self._arrays = frozenset(column.name for column in columns if column.logical_type == "array")
        self._unread = frozenset(column.name for column in columns) - self._inputs
        self._physical_names = {
            column.physical_name: column.name for column in columns if column.physical_name not in (None, column.name)
        }

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> pd.DataFrame | pd.Series[Any]:
        """A row for each row of `data`: its label, or labels, and a probability for each class, or its value.

        Several labels with classes have a column each, such as `colour`, and one such as `colour_probabilities`.

        MLflow's evaluators get the label or the value only, since those of classifiers and regressors take one column.

        `data` is a DataFrame of pandas or Polars, an Arrow table, a list of rows by column, one such row, or lists of
        values by column. A frame may also have the contract's other columns, such as the key and the label, also as its
        index. An image or recording may be the bytes of its file.

        Raises:
            MlflowException: a row breaks the contract; its message, and the problems in its JSON, are the endpoint's.
        """
        import pandas as pd

        try:
            rows = self._parse(data)
            outputs = [
                self.version.predict(batch) for batch in pa.Table.from_batches([rows]).to_batches(self._batch_rows)
            ]
        except RowsRefused as refusal:
            raise _mlflow_error(str(refusal), refusal.problems) from refusal
        except HTTPError as refusal:  # a file has too many pixels or samples
            raise _mlflow_error(refusal.error, refusal.problems) from refusal
        except DataUnfit as failure:
            raise _mlflow_error(failure.found, []) from failure
        index = data.index if isinstance(data, pd.DataFrame) else None
        answers = self.version.format_predictions(np.concatenate(outputs))
        if self.version.encoder.class_outputs:
            answers = [flatten_classes(answer) for answer in answers]
        if self.version.is_tagging:
            answers = [drop_unread(answer) for answer in answers]
        predictions = pd.DataFrame(answers, index=index)
        if not _is_evaluated():
            return predictions
        if self.version.is_embedding:
            raise _mlflow_error("MLflow's evaluators take one label per row, and this model computes vectors", [])
        if self.version.is_tagging:
            raise _mlflow_error("MLflow's evaluators take one label per row, and this model has one for each word", [])
        if self.version.output_names:
            raise _mlflow_error("MLflow's evaluators take one value per row, and this model predicts several", [])
        if self.version.is_multilabel:
            raise _mlflow_error(
                "MLflow's evaluators take one label per row, and this model predicts sets of labels", []
            )
        return self._label_or_value(predictions)

    def _label_or_value(self, predictions: pd.DataFrame) -> pd.Series[Any]:
        """The first column, as the source has it: the classes of a boolean label are text in a prediction."""
        column = self.version.contract.column(self.version.encoder.features.label)
        is_boolean = column is not None and column.logical_type == "boolean" and "label" in predictions
        return predictions["label"] == "true" if is_boolean else predictions.iloc[:, 0]

    def _parse(self, data: Any) -> pa.RecordBatch:
        """The rows in the contract's types. Raises RowsRefused as the endpoint does for a JSON request."""
        import pandas as pd

        if isinstance(data, Mapping) and set(data) == {"rows"}:
            return self._parse_rows(data["rows"])  # the body of a request to the endpoint
        if isinstance(data, Mapping):
            return self._parse_rows(self._split_columns(data) if self._has_lists(data) else [data])
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            return self._parse_rows(data)
        if isinstance(data, pd.DataFrame):
            return self._parse_pandas(data)
        if hasattr(data, "__arrow_c_stream__") and not isinstance(data, pd.Series):
            return self._parse_table(pa.table(data))
        required = f"a DataFrame with the columns {', '.join(self.version.encoder.columns)}"
        raise RowsRefused([row_problem("", "", _describe_type(data), f"the model requires {required}")])

    def _has_lists(self, columns: Mapping[str, Any]) -> bool:
        """Whether each column has a list of values, and not the value of one row, which may be a list, too."""
        return bool(columns) and all(
            isinstance(values, _LISTS) and (name not in self._arrays or (len(values) and isinstance(values[0], _LISTS)))
            for name, values in columns.items()
        )

    @staticmethod
    def _split_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """A row for each position. Raises RowsRefused if the lists have several lengths."""
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            rule = "each column must have as many values as the others"
            raise RowsRefused(
                [row_problem("", name, f"{len(values)} values", rule) for name, values in columns.items()]
            )
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _parse_pandas(self, frame: pd.DataFrame) -> pa.RecordBatch:
        repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
        if repeated:
            rule = "a column may occur only once"
            raise RowsRefused([row_problem("", name, "two columns", rule) for name in repeated])
        levels = [name for name in frame.index.names if name in self._columns and name not in frame.columns]
        if levels:  # what is the index of the frame is a column of the contract
            frame = frame.reset_index(level=levels)
        frame = frame.rename(columns=self._contract_names(list(frame.columns)))
        frame = frame.loc[:, [name not in self._unread for name in frame.columns]]
        try:
            table = pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError):  # values of several types in one column
            return self._parse_rows(frame.to_dict("records"))
        return self._parse_table(table)

    def _parse_table(self, table: pa.Table) -> pa.RecordBatch:
        """Arrow checks the rows. If it refuses any, the rules for JSON decide, so that all errors are the same."""
        names = self._contract_names(table.column_names)
        table = table.rename_columns([names.get(name, name) for name in table.column_names])
        table = table.select([name for name in table.column_names if name not in self._unread])
        columns = [
            self._convert(table.schema.field(position), table.column(position)) for position in range(table.num_columns)
        ]
        table = pa.table(columns, names=table.column_names).combine_chunks()
        if table.num_rows and table.num_columns:
            try:
                return self.version.arrow_check.parse_batch(table.to_batches()[0])
            except RowsRefused:
                pass
        return self._parse_rows(table.to_pylist())

    def _contract_names(self, names: Sequence[Any]) -> dict[Any, str]:
        """The contract's names of columns that a frame has under the source's own."""
        physical_names = {name: self._physical_names[name] for name in names if name in self._physical_names}
        return {name: contract_name for name, contract_name in physical_names.items() if contract_name not in names}

    def _convert(self, field: pa.Field, values: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
        """Decimals as floats, and dates and times as the contract has them, if all can be converted.

        pandas has no dates but times at midnight, and reads both from CSV as text, in UTC where it has no offset.
        """
        if pa.types.is_decimal(field.type):
            return values.cast(pa.float64())
        schema, contract = self.version.arrow_check.schema, self.version.contract
        position = schema.get_field_index(field.name)
        required = schema.field(position).type if position >= 0 else None
        if required is None or not pa.types.is_temporal(required):
            return values
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            moments, unfit = cast_column(values.combine_chunks(), required, contract.date_formats.get(field.name))
            return values if unfit.true_count else moments
        if pa.types.is_timestamp(field.type) and pa.types.is_date(required):
            dates = values.cast(pa.date32(), safe=False)
            if pc.all(pc.equal(dates.cast(field.type), values)).as_py() in (True, None):
                return dates
        return values

    def _parse_rows(self, rows: Any) -> pa.RecordBatch:
        """As the endpoint parses the rows of a JSON request, which may have files as bytes or in base64."""
        values = [_to_json(row) for row in rows] if isinstance(rows, Sequence) else rows
        if not self._has_files(values):
            return self.version.row_check.parse_table(values).combine_chunks().to_batches()[0]
        limits = read_limits()
        limits = limits._replace(  # those of a request are for each row here
            rows=len(values),
            image_pixels=limits.image_pixels * len(values),
            audio_samples=limits.audio_samples * len(values),
        )
        parsed = parse_media_rows(self.version, b"", json.dumps({"rows": values}).encode(), limits)
        return parsed if isinstance(parsed, pa.RecordBatch) else self.version.row_check.to_columns(parsed).batch

    def _has_files(self, rows: Any) -> bool:
        if not isinstance(rows, list):
            return False
        names = [media.column for media in self.version.media]
        return any(isinstance(row, dict) and isinstance(row.get(name), dict) for row in rows for name in names)


def _to_json(value: Any) -> Any:
    """The value as it stands in JSON; None for NaN, which is how pandas marks a missing value."""
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return {BASE64: base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if type(value).__name__ in _MISSING or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def _describe_type(data: Any) -> str:
    shape = getattr(data, "shape", None)
    return type(data).__name__ if shape is None else f"{type(data).__name__} of shape {shape}"


def _mlflow_error(message: str, problems: list[dict[str, Any]]) -> Exception:
    """An error that MLflow's scoring server answers with status 400, the message and the problems."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the progress bars that Jupyter could show
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE, problems=problems)


def _is_evaluated() -> bool:
    """Whether one of MLflow's evaluators calls the model, not a function of the user that it evaluates."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "mlflow.pyfunc"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).startswith("mlflow.models.evaluation.")


def _accept_frames_in_requests() -> None:
    """Makes MLflow's scoring server accept all forms of JSON for this model, if this process runs one.

    For a model that checks its rows itself, it accepts only `{"inputs": [ROW, …]}`, and refuses the forms of a
    DataFrame. This replaces an undocumented function; where MLflow has none of that name, the documented form remains.
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None:
        return
    parse: Callable[..., Any] | None = getattr(server, _PARSE, None)
    if parse is None or hasattr(parse, "__wrapped__"):
        return

    @functools.wraps(parse)
    def parse_rows(data: Any, metadata: Any, input_schema: Any) -> Any:
        if metadata.flavors.get("python_function", {}).get("loader_module") == LOADER:
            data = _as_inputs(data)
        return parse(data, metadata, input_schema)

    vars(server)[_PARSE] = parse_rows


def _as_inputs(data: Any) -> Any:
    """The body of a request with its rows under `inputs`; any other body unchanged."""
    try:
        body = json.loads(data) if isinstance(data, str | bytes) else data
        for name in ("rows", "dataframe_records", "instances"):
            if name in body:
                return {**{key: value for key, value in body.items() if key != name}, "inputs": body[name]}
        if "dataframe_split" in body:
            frame = body.pop("dataframe_split")
            rows = [dict(zip(frame["columns"], values, strict=True)) for values in frame["data"]]
            return {**body, "inputs": rows}
    except (ValueError, TypeError, KeyError):
        return data  # MLflow says what is wrong
    return data
