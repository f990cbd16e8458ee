"""What becomes of columns about a person before rows are kept: dropped, hashed with a key, or encrypted in the Parquet.

The key comes from the environment, since it must not lie beside what it protects.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet.encryption as pe

from bloomery.data_contracts.errors import SecretMissing
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract

KEY_VARIABLE = "BLOOMERY_PERSONAL_KEY"
_MASTER = "bloomery-personal"
_NONCE_BYTES = 12


def protected_schema(contract: Contract) -> pa.Schema:
    """The columns of checked rows: as the contract has them, without the dropped ones, and text where one is hashed."""
    treatments = {column.name: column.personal for column in contract.columns}
    return pa.schema(
        [
            field.with_type(pa.string()) if treatments[field.name] == "hash" else field
            for field in arrow_schema(contract)
            if treatments[field.name] != "drop"
        ]
    )


def protect_batch(rows: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    """`rows` of the contract's schema as they are kept, in `kept_schema`. A null stays null.

    A hash is HMAC-SHA256 of the value's text, so equal values stay equal, and nobody without the key can try values.
    """
    schema = protected_schema(contract)
    hashed = {column.name for column in contract.columns if column.personal == "hash"}
    arrays = [_hashed(rows.column(field.name)) if field.name in hashed else rows.column(field.name) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _hashed(values: pa.Array) -> pa.StringArray:
    secret = _secret("hash")
    words = values.dictionary_encode()  # each value once
    texts = (str(word).encode() for word in words.dictionary.to_pylist())
    digests = [hmac.new(secret, word, hashlib.sha256).hexdigest() for word in texts]
    return pa.array(digests, pa.string()).take(words.indices)


def encryption_properties(columns: list[str]) -> Any:
    """The properties of a Parquet file in which `columns` are encrypted and all else can be read by everyone.

    None where there is nothing to encrypt.
    """
    if not columns:
        return None
    stated = pe.EncryptionConfiguration(
        footer_key=_MASTER, column_keys={_MASTER: columns}, plaintext_footer=True, double_wrapping=False
    )
    return pe.CryptoFactory(_Keys).file_encryption_properties(pe.KmsConnectionConfig(), stated)


def decryption_properties() -> Any:
    """The properties to read such a file, or any other, with; None where there is no key."""
    if KEY_VARIABLE not in os.environ:
        return None
    return pe.CryptoFactory(_Keys).file_decryption_properties(pe.KmsConnectionConfig())


def key_fingerprint(columns: Collection[str]) -> str:
    """Changes when the key does; empty where there is no column about a person.

    Raises:
        SecretMissing: there is one, and no key to keep it with.
    """
    return hashlib.sha256(_secret("fingerprint")).hexdigest()[:16] if columns else ""


def _secret(purpose: str) -> bytes:
    """A key for one purpose, derived from the user's."""
    stated = os.environ.get(KEY_VARIABLE, "")
    if len(stated) < 16:
        raise SecretMissing(
            f"{KEY_VARIABLE} has {len(stated)} characters" if stated else f"{KEY_VARIABLE} is not set",
            required="a secret of at least 16 characters, since the contract marks columns as personal",
            where="the environment of the run, and of everyone who reads what it has encrypted",
            remedy=f"set it from a secret store, such as export {KEY_VARIABLE}=$(openssl rand -hex 32), and keep it",
        )
    return hmac.new(stated.encode(), f"bloomery {purpose}".encode(), hashlib.sha256).digest()


class _Keys(pe.KmsClient):
    """Wraps the random key of each file with ours."""

    def __init__(self, _: Any) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(_secret("encrypt")).encrypt(nonce, key_bytes, master_key_identifier.encode())
        return base64.b64encode(nonce + sealed)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        sealed = base64.b64decode(wrapped_key)
        return AESGCM(_secret("encrypt")).decrypt(
            sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], master_key_identifier.encode()
        )
