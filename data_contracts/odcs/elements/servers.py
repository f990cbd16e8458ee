"""The servers of a contract, and the keys of each type of server. They are kept, not acted on.

Source: Open Data Contract Standard v3.1, Infrastructure and Servers.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, model_validator

from bloomery.data_contracts.odcs.base import CamelModel, CustomProperty, Problem, StableId, raise_problems, unknown_key
from bloomery.data_contracts.odcs.elements.descriptions import Role

# For each type of server, the keys that it must have, and those that it may have.
_KEYS: dict[str, tuple[str, str]] = {
    "api": ("location", ""),
    "athena": ("stagingDir schema", "catalog regionName"),
    "azure": ("location format", "delimiter"),
    "bigquery": ("project dataset", ""),
    "clickhouse": ("host port database", ""),
    "databricks": ("catalog schema", "host"),
    "denodo": ("host port", "database"),
    "dremio": ("host port", "schema"),
    "duckdb": ("database", "schema"),
    "glue": ("account database", "location format"),
    "cloudsql": ("host port database schema", ""),
    "db2": ("host port database", "schema"),
    "hive": ("host database", "port"),
    "impala": ("host database", "port"),
    "informix": ("host database", "port"),
    "kafka": ("host", "format"),
    "kinesis": ("", "region format"),
    "local": ("path format", ""),
    "mysql": ("host port database", ""),
    "oracle": ("host port serviceName", ""),
    "postgresql": ("host port database schema", ""),
    "postgres": ("host port database schema", ""),
    "presto": ("host", "catalog schema"),
    "pubsub": ("project", ""),
    "redshift": ("database schema", "host region account"),
    "s3": ("location", "endpointUrl format delimiter"),
    "sftp": ("location", "format delimiter"),
    "snowflake": ("account database schema", "host port warehouse"),
    "sqlserver": ("host database schema", "port"),
    "synapse": ("host port database", ""),
    "trino": ("host port catalog schema", ""),
    "vertica": ("host port database schema", ""),
    "zen": ("host database", "port"),
    "custom": (
        "",
        "account catalog database dataset delimiter endpointUrl format host location path port project region "
        "regionName schema serviceName stagingDir warehouse stream",
    ),
}


class Server(CamelModel):
    """Where the data lies. The other keys depend on the type."""

    model_config = ConfigDict(extra="allow")

    id: StableId | None = None
    server: str
    type: str
    description: str | None = None
    environment: str | None = None
    roles: tuple[Role, ...] = ()
    custom_properties: tuple[CustomProperty, ...] = ()

    @model_validator(mode="after")
    def _has_keys_of_its_type(self) -> Self:
        if self.type not in _KEYS:
            raise_problems([Problem(f"must be one of {', '.join(_KEYS)}, not {self.type!r}", "type")], self.server)
        required_keys, optional_keys = (keys.split() for keys in _KEYS[self.type])
        known_keys = [
            *required_keys,
            *optional_keys,
            *(field.alias or "" for field in type(self).model_fields.values()),
        ]
        values: dict[str, Any] = self.model_extra or {}
        problems = [Problem(unknown_key(key, known_keys), key) for key in values if key not in known_keys]
        problems += [Problem("missing", key) for key in required_keys if key not in values]
        for key, value in values.items():
            expected, name = (int, "a whole number") if key == "port" else (str, "text")
            if key in known_keys and (not isinstance(value, expected) or isinstance(value, bool)):
                problems.append(Problem(f"must be {name}, not {value!r}", key))
        raise_problems(problems, self.server)
        return self
