"""Protects columns about a person before rows are kept: drops them, hashes them, or encrypts them in the Parquet file.

The key comes from the environment, since it must not be stored beside what it protects.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from bloomery.data_contracts.errors import SecretMissing
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract

KEY_VARIABLE = "BLOOMERY_PERSONAL_KEY"
_MASTER_KEY_NAME = "bloomery-personal"
_NONCE_BYTES = 12


def protected_schema(contract: Contract) -> pa.Schema:
    """Returns the columns of validated rows: those of the contract without dropped columns; hashed columns are text."""
    treatments = {column.name: column.personal for column in contract.columns}
    return pa.schema(
        [
            field.with_type(pa.string()) if treatments[field.name] == "hash" else field
            for field in arrow_schema(contract.columns)
            if treatments[field.name] != "drop"
        ]
    )


def protect_batch(rows: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    """Returns `rows` of the contract's schema in `protected_schema`. A null stays null.

    A hash is HMAC-SHA256 of the value's text: equal values stay equal, and only the key's owner can test a value.
    """
    schema = protected_schema(contract)
    hashed_columns = {column.name for column in contract.columns if column.personal == "hash"}
    arrays = [
        _hash_values(rows.column(field.name)) if field.name in hashed_columns else rows.column(field.name)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _hash_values(values: pa.Array) -> pa.StringArray:
    key = _derive_key("hash")
    encoded = values.dictionary_encode()  # so that each value is hashed once
    texts = (str(value).encode() for value in encoded.dictionary.to_pylist())
    digests = [hmac.new(key, text, hashlib.sha256).hexdigest() for text in texts]
    return pa.array(digests, pa.string()).take(encoded.indices)


def encryption_properties(columns: list[str]) -> pq.FileEncryptionProperties | None:
    """Returns the properties of a Parquet file in which `columns` are encrypted and everyone can read the rest.

    None where there is nothing to encrypt.
    """
    if not columns:
        return None
    configuration = pe.EncryptionConfiguration(
        footer_key=_MASTER_KEY_NAME,
        column_keys={_MASTER_KEY_NAME: columns},
        plaintext_footer=True,
        double_wrapping=False,
    )
    return pe.CryptoFactory(_KeyWrapper).file_encryption_properties(pe.KmsConnectionConfig(), configuration)


def decryption_properties() -> pq.FileDecryptionProperties | None:
    """Returns the properties to read such a file, or any other; None where there is no key."""
    if KEY_VARIABLE not in os.environ:
        return None
    return pe.CryptoFactory(_KeyWrapper).file_decryption_properties(pe.KmsConnectionConfig())


def key_fingerprint(columns: Collection[str]) -> str:
    """Returns a text that changes when the key does; empty where there are no personal columns.

    Raises:
        SecretMissing: there are personal columns, and no key.
    """
    return hashlib.sha256(_derive_key("fingerprint")).hexdigest()[:16] if columns else ""


def _derive_key(purpose: str) -> bytes:
    """Returns a key for one purpose, derived from the user's."""
    secret = os.environ.get(KEY_VARIABLE, "")
    if len(secret) < 16:
        raise SecretMissing(
            f"{KEY_VARIABLE} has {len(secret)} characters" if secret else f"{KEY_VARIABLE} is not set",
            required="a secret of at least 16 characters, since the contract marks columns as personal",
            where="the environment of the run, and of everyone who reads the encrypted columns",
            remedy=f"set it from a secret store, such as export {KEY_VARIABLE}=$(openssl rand -hex 32), and keep it",
        )
    return hmac.new(secret.encode(), f"bloomery {purpose}".encode(), hashlib.sha256).digest()


class _KeyWrapper(pe.KmsClient):
    """Encrypts the random key of each Parquet file with the user's key."""

    def __init__(self, _: pe.KmsConnectionConfig) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = AESGCM(_derive_key("encrypt")).encrypt(nonce, key_bytes, master_key_identifier.encode())
        return base64.b64encode(nonce + ciphertext)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce_and_ciphertext = base64.b64decode(wrapped_key)
        return AESGCM(_derive_key("encrypt")).decrypt(
            nonce_and_ciphertext[:_NONCE_BYTES], nonce_and_ciphertext[_NONCE_BYTES:], master_key_identifier.encode()
        )
