"""`bloomery key`: create, list, revoke; and `bloomery serve` on an open address without keys."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from typer.testing import CliRunner, Result

from bloomery.data_contracts.errors import SecretMissing, SettingInvalid
from bloomery.data_contracts.serving.api_keys import hash_key, read_keys
from bloomery.flows.cli.main import app
from bloomery.tasks.bentos.bento_server import require_keys, serve_environment
from bloomery.tasks.infrastructure import settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port
from bloomery.tasks.security import api_keys
from bloomery.tasks.security import signing_key as signing


@pytest.fixture
def call(home: Path) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(app, ["key", *map(str, arguments)])


def test_a_key_is_shown_once_and_stored_as_a_digest_in_a_private_file(call, home) -> None:
    result = call("create", "shop", "--rate", "2.5")
    assert result.exit_code == 0, result.output
    secret = result.stdout.strip()
    assert secret.startswith("bloomery_")
    assert len(secret) == len("bloomery_") + 43  # 256 bits in base64
    path = home / "keys" / "clients.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert secret not in path.read_text()
    (key,) = read_keys(path).keys
    assert (key.name, key.rate, key.revoked_at) == ("shop", 2.5, None)
    assert key.sha256 == hash_key(secret.encode())
    assert secret not in call("list").stdout + call("list", "--json").stdout


def test_no_two_keys_are_equal(call) -> None:
    assert len({json.loads(call("create", f"k{number}", "--json").stdout)["key"] for number in range(5)}) == 5


def test_a_revoked_key_is_listed_and_its_name_may_be_reused(call) -> None:
    call("create", "shop")
    assert json.loads(call("revoke", "shop", "--json").stdout)["name"] == "shop"
    assert call("create", "shop").exit_code == 0
    first, second = json.loads(call("list", "--json").stdout)["keys"]
    assert (first["name"], second["name"]) == ("shop", "shop")
    assert first["revoked_at"]
    assert not second["revoked_at"]
    assert "shop" in call("list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "two words"), 2, "is not a valid key"),
        (("create", "-"), 2, "is not a valid key"),
        (("create", "shop", "--rate", "0"), 2, "a rate above 0"),
        (("create", "shop", "--rate", "inf"), 2, "a rate above 0"),
        (("create", "there"), 2, "there is a key 'there' already"),
        (("revoke", "nobody"), 2, "one of there"),
    ],
)
def test_invalid_key_names_and_rates_are_refused(call, arguments, code, message) -> None:
    call("create", "there")
    result = call(*arguments, "--json")
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert message in f"{document['found']} {document['required']}"


def test_an_invalid_key_file_is_reported_without_its_content(call, home) -> None:
    call("create", "shop")
    path = home / "keys" / "clients.json"
    path.write_text('{"keys": [{"name": "shop", "key": "bloomery_in-the-clear"}]}')
    result = call("list")
    assert result.exit_code == 2
    assert "the file of keys cannot be read" in result.stderr
    assert "in-the-clear" not in result.output


def test_keys_that_are_created_concurrently_are_all_kept(home) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: api_keys.create_key(f"k{number}"), range(24)))
    assert len(api_keys.list_keys()) == 24
    assert [path.name for path in (home / "keys").iterdir() if "tmp" in path.name] == []


def test_the_environment_may_name_another_file(call, home, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BLOOMERY_SERVE_KEYS_FILE", str(tmp_path / "elsewhere" / "keys.json"))
    assert call("create", "shop").exit_code == 0
    assert [key.name for key in read_keys(tmp_path / "elsewhere" / "keys.json").keys] == ["shop"]
    assert not (home / "keys" / "clients.json").exists()


@pytest.mark.parametrize(
    ("host", "setting", "is_refused"),
    [
        ("127.0.0.1", "", False),
        ("::1", "auto", False),
        ("0.0.0.0", "", True),
        ("::", "auto", True),
        ("10.0.0.1", "off", False),
        ("127.0.0.1", "required", True),
    ],
)
def test_an_address_that_requires_keys_is_not_served_without_one(home, monkeypatch, host, setting, is_refused) -> None:
    monkeypatch.setenv("BLOOMERY_SERVE_KEYS", setting)
    if is_refused:
        with pytest.raises(SecretMissing, match="bloomery key create"):
            require_keys(host)
        api_keys.create_key("shop")
    require_keys(host)
    api_keys.create_key("other")
    for key in api_keys.list_keys():
        api_keys.revoke_key(key.name)
    if is_refused:
        with pytest.raises(SecretMissing):
            require_keys(host)


def test_serve_on_an_open_address_without_keys_ends_and_says_what_to_do(bloomery, tmp_path) -> None:
    completed = bloomery(tmp_path, "serve", "digits", "--host", "0.0.0.0", "--port", str(find_free_port()), "--json")
    document = json.loads(completed.stdout)
    assert (completed.returncode, document["error"]) == (2, "SecretMissing")
    assert "bloomery key create" in document["remedy"]


def test_the_signing_key_is_created_once_and_only_its_public_part_is_shown(call, home, tmp_path) -> None:
    document = json.loads(call("signing", "--json").stdout)
    assert json.loads(call("signing", "--json").stdout) == document
    private = home / "keys" / "signing.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "PRIVATE" not in document["public"]
    output = tmp_path / "trusted.pem"
    assert call("signing", "--output", output).exit_code == 0
    assert load_pem_public_key(output.read_bytes()) == signing.load_signing_key().public_key()
    assert serve_environment()["BLOOMERY_SERVE_TRUSTED_KEY"] == str(home / "keys" / "trusted.pem")


def test_the_users_own_signing_key_is_used_and_earlier_ones_stay_trusted(call, home, tmp_path, monkeypatch) -> None:
    first = json.loads(call("signing", "--json").stdout)["public"]
    path = tmp_path / "own.pem"
    path.write_bytes((home / "keys" / "signing.pem").read_bytes())
    (home / "keys" / "signing.pem").unlink()
    second = json.loads(call("signing", "--json").stdout)["public"]
    assert first != second
    monkeypatch.setenv("BLOOMERY_SIGNING_KEY", str(path))
    settings.settings.cache_clear()
    assert json.loads(call("signing", "--json").stdout)["public"] == first
    assert (home / "keys" / "trusted.pem").read_text() == first + second


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_an_invalid_signing_key_is_refused(home, tmp_path, monkeypatch, content) -> None:
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("BLOOMERY_SIGNING_KEY", str(path))
    settings.settings.cache_clear()
    with pytest.raises(SettingInvalid, match="the signing key cannot be used"):
        signing.load_signing_key()
