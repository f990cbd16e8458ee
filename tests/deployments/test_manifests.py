"""The manifests match their schemas, and agree with our code, with the lock file and with each other."""

import copy
import importlib.resources
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from bloomery.data_contracts.serving.api_keys import KEY_POLICY_VARIABLE, KEYS_FILE_VARIABLE
from bloomery.data_contracts.serving.signatures import TRUSTED_KEY_VARIABLE, UNSIGNED_VARIABLE
from bloomery.deployments.endpoint.asgi.application import _BENTOML_PATHS
from bloomery.deployments.endpoint.auth.middleware import PUBLIC_PATHS
from bloomery.deployments.endpoint.base_image import STATE_FOLDER
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.startup import PREFIX, ServingOptions
from bloomery.tasks.bentos.container_checks import _PINNED_IMAGE, PORT

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
KUBERNETES = DEPLOYMENTS / "kubernetes"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    item for name in KUSTOMIZATION["resources"] for item in yaml.safe_load_all((KUBERNETES / name).read_text())
]
DOCKERFILE = (DEPLOYMENTS / "Dockerfile").read_text()
LOCK = {
    Requirement(line).name: str(Requirement(line).specifier).removeprefix("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
}
LIMITS = {f"{PREFIX}{name.upper()}" for name in Limits._fields}
OPTIONS = {f"{PREFIX}{name.upper()}" for name in ServingOptions._fields}
# Variables of the endpoint, of the worker's settings, and of the recipes' paths.
BLOOMERY_VARIABLES = {
    *LIMITS,
    *OPTIONS,
    KEY_POLICY_VARIABLE,
    KEYS_FILE_VARIABLE,
    TRUSTED_KEY_VARIABLE,
    UNSIGNED_VARIABLE,
    "BLOOMERY_HOME",
    "BLOOMERY_DATA",
}
SERVER_VARIABLES = {
    "HOME",
    "PGPASSWORD",
    "PGDATA",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD_FILE",
    "BENTOML_HOME",
    "BENTOML_DO_NOT_TRACK",
}
SECRET = re.compile(r"PASSWORD$|TOKEN$|SECRET$|API_KEY$")


def fill_variables(text: str, **values: str) -> str:
    """Substitutes variables as Docker Compose does."""

    def value(match: re.Match[str]) -> str:
        name, _, default = match.group(1).partition(":")
        return values.get(name) or default[1:]

    return re.sub(r"\$\{([^}]+)\}", value, text).replace("$$", "$")


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for item in OBJECTS:
        if "template" in item.get("spec", {}):
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]


CONTAINERS = {name: pod["containers"][0] for name, pod in pods()}


def objects_by_name(kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in OBJECTS if item["kind"] == kind}


def compose_schema() -> dict[str, Any]:
    vendor = importlib.resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json")
    schema: dict[str, Any] = json.loads(vendor.read_text(encoding="utf-8"))
    return schema


def test_compose_matches_the_compose_specification() -> None:
    jsonschema.validate(COMPOSE, compose_schema())
    for place, wrong in (("restart", 3), ("portz", []), ("healthcheck", {"test": 3})):
        broken = copy.deepcopy(COMPOSE)
        broken["services"]["endpoint"][place] = wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, compose_schema())


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_every_object_matches_kubernetes_schemas(version: str) -> None:
    for item in OBJECTS:
        kubernetes_validate.validate(item, version, strict=True)
    broken = copy.deepcopy(objects_by_name("Deployment")["endpoint"])
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_kustomization_lists_every_file() -> None:
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    for item in KUSTOMIZATION["configMapGenerator"]:
        assert all((KUBERNETES / path).is_file() for path in item["files"])


def test_kubectl_builds_the_kustomization(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    shutil.copytree(KUBERNETES, tmp_path / "k", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "k" / "secrets").mkdir()
    for name in ("postgres_password", "clients.json", "trusted.pem"):
        (tmp_path / "k" / "secrets" / name).write_text("open sesame")
    completed = subprocess.run(["kubectl", "kustomize", tmp_path / "k"], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    objects = list(yaml.safe_load_all(completed.stdout))
    assert len(objects) == len(OBJECTS) + 3  # a config map and two secrets
    assert {item["metadata"].get("namespace", "bloomery") for item in objects} == {"bloomery"}


def test_references_of_compose_are_defined() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"]), name
        assert {item["source"] for item in service.get("configs", ())} <= set(COMPOSE["configs"]), name
        sources = [fill_variables(volume).split(":")[0] for volume in service.get("volumes", ())]
        assert {source for source in sources if "/" not in source} <= set(COMPOSE["volumes"]), name
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", name
            assert "healthcheck" in services[needed], name
            assert set(services[needed]["networks"]) & set(service["networks"]), name
        build = service.get("build", {})
        if "dockerfile" in build:
            assert (DEPLOYMENTS / build["context"] / build["dockerfile"]).is_file()
            assert f"AS {build['target']}\n" in DOCKERFILE
    assert all((DEPLOYMENTS / item["file"]).is_file() for item in COMPOSE["configs"].values())


def test_references_of_pods_are_defined() -> None:
    secrets = {
        (item["name"], file.split("=")[0]) for item in KUSTOMIZATION["secretGenerator"] for file in item["files"]
    }
    config_maps = {item["name"] for item in KUSTOMIZATION["configMapGenerator"]}
    for name, pod in pods():
        container = pod["containers"][0]
        for item in container.get("env", ()):
            if "valueFrom" in item:
                reference = item["valueFrom"]["secretKeyRef"]
                assert (reference["name"], reference["key"]) in secrets, name
        claims = {
            item["metadata"]["name"]
            for item in objects_by_name("StatefulSet").get(name, {}).get("spec", {}).get("volumeClaimTemplates", ())
        }
        volumes = {item["name"]: item for item in pod["volumes"]}
        for mount in container["volumeMounts"]:
            assert mount["name"] in {*volumes, *claims}, name
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", "databases") in config_maps, name
            assert volume.get("secret", {}).get("secretName", "postgres") in {secret for secret, _ in secrets}, name
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in objects_by_name("PersistentVolumeClaim"), name
    ports = {name: {port["name"] for port in container.get("ports", ())} for name, container in CONTAINERS.items()}
    for name, service in objects_by_name("Service").items():
        app = service["spec"]["selector"]["app"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[app], name
    for policy in objects_by_name("NetworkPolicy").values():
        text = json.dumps(policy["spec"])
        assert set(re.findall(r'"port": "(\w+)"', text)) <= {port for some in ports.values() for port in some}
        for value in re.findall(r'"app": "(\w+)"|"values": \[([^\]]+)\]', text):
            assert set(re.findall(r"\w+", " ".join(value))) <= set(CONTAINERS)
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert set(objects_by_name(kind)) == {"endpoint"}
    assert "replicas" not in objects_by_name("Deployment")["endpoint"]["spec"]  # set by the autoscaler


def test_secrets_are_mounted_where_they_are_read() -> None:
    endpoint = CONTAINERS["endpoint"]
    files = {file.split("=")[0].split("/")[-1] for item in KUSTOMIZATION["secretGenerator"] for file in item["files"]}
    (mounted,) = [item["mountPath"] for item in endpoint["volumeMounts"] if item["name"] == "secrets"]
    text = {item["name"]: item["value"] for item in endpoint["env"]}
    for key in (KEYS_FILE_VARIABLE, TRUSTED_KEY_VARIABLE):
        assert text[key].rpartition("/")[0] == mounted
        assert text[key].rpartition("/")[2] in files
        named_by_compose = COMPOSE["services"]["endpoint"]["environment"][key].removeprefix("/run/secrets/")
        assert named_by_compose in COMPOSE["services"]["endpoint"]["secrets"]
    for service in COMPOSE["services"].values():
        for path in re.findall(r"/run/secrets/(\w+)", json.dumps(service)):
            assert path in service["secrets"]


def hosts(text: str) -> set[str]:
    return set(re.findall(r"(?:http://|@)([a-z]+):(?:\d+)", text))


def test_host_names_exist() -> None:
    for service in COMPOSE["services"].values():
        assert hosts(json.dumps([service.get("command"), service.get("environment")])) <= set(COMPOSE["services"])
    for container in CONTAINERS.values():
        assert hosts(json.dumps([container.get("command"), container.get("env")])) <= set(objects_by_name("Service"))


def test_images_are_pinned_or_built_here() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    tags = {item["name"]: item for item in KUSTOMIZATION["images"]}
    for name, service in COMPOSE["services"].items():
        image = service["image"]
        if image.startswith("bloomery-"):
            assert image.endswith(f":{version.group(1)}"), name
            assert tags[image.split(":")[0]]["newTag"] == version.group(1)
            assert service["build"]["target"] == image.removeprefix("bloomery-").split(":")[0]
        elif name == "endpoint":
            assert fill_variables(image, BLOOMERY_IMAGE="digits:37f915b31d78a0f7") == "digits:37f915b31d78a0f7"
            assert ":?" in image  # there is no default
        else:
            assert re.search(r":\d+\.\d+-", image), name
            assert image == CONTAINERS[name]["image"]
    assert all(container["image"] in tags or ":" in container["image"] for container in CONTAINERS.values())
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert bases[1:] == ["servers"]
    assert _PINNED_IMAGE.search(bases[0])


def test_the_servers_have_the_versions_of_the_lock() -> None:
    installed = re.search(r"--constraint requirements.lock (mlflow prefect .+?) \\", DOCKERFILE)
    assert installed is not None
    assert set(installed.group(1).split()) <= set(LOCK)
    assert {"asyncpg", "psycopg2-binary"} <= set(LOCK)
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("--constraint requirements.lock")
    prefect = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
    assert prefect["prefect-version"] == LOCK["prefect"]
    assert prefect["deployments"][0]["work_pool"]["name"] == "bloomery"
    assert "--pool=bloomery" in COMPOSE["services"]["worker"]["command"]
    ignored = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        word.strip("/")
        for line in re.findall(r"^COPY (.+) \./", DOCKERFILE, flags=re.MULTILINE)
        for word in line.split()
    ]
    assert copied
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def commands() -> dict[str, list[str]]:
    """The commands of both manifests, which must not differ."""
    text = {name: service["command"] for name, service in COMPOSE["services"].items() if "command" in service}
    assert text == {name: container["command"] for name, container in CONTAINERS.items() if name in text}
    return text


def test_every_command_is_valid_for_its_program() -> None:
    from mlflow.cli import cli as mlflow
    from prefect.cli._app import _app as prefect

    from bloomery.flows.services import prefect_deployments

    for name, (program, *arguments) in commands().items():
        if program == "mlflow":
            mlflow.commands[arguments[0]].make_context(name, arguments[1:])
        elif program == "python":
            assert arguments == ["-m", prefect_deployments.__name__], name  # without names it registers every recipe
        else:
            _, session, _ = prefect.meta.parse_args(arguments, exit_on_error=False, print_error=False)
            prefect.parse_args(session.arguments["tokens"], exit_on_error=False, print_error=False)
            assert program == "prefect"
    text = commands()["mlflow"]
    assert "--workers=1" in text  # the default has a process for each of several jobs
    assert any(item.startswith("--allowed-hosts=mlflow:5000,") for item in text)


def environments() -> Iterator[tuple[str, str, str]]:
    for name, service in COMPOSE["services"].items():
        yield from ((name, key, str(value)) for key, value in service.get("environment", {}).items())
    for name, container in CONTAINERS.items():
        yield from ((name, item["name"], item.get("value", "")) for item in container.get("env", ()))


def test_every_variable_is_read() -> None:
    import mlflow.environment_variables
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known_variables = (
        BLOOMERY_VARIABLES
        | SERVER_VARIABLES
        | set(_get_settings_fields(Settings))
        | {"PREFECT_SERVER_ANALYTICS_ENABLED"}
    )
    for name, key, value in environments():
        assert key in known_variables or hasattr(mlflow.environment_variables, key), (name, key)
        assert not SECRET.search(key) or value == "", (name, key)
    variables = COMPOSE["services"]["endpoint"]["environment"]
    assert {key for key in LIMITS if fill_variables(variables[key]) == ""} == LIMITS  # unset means the default
    assert variables["BLOOMERY_SERVE_LOG"].startswith(f"{STATE_FOLDER}/")
    assert f"predictions:{STATE_FOLDER}" in COMPOSE["services"]["endpoint"]["volumes"]


def test_probes_use_paths_of_the_servers() -> None:
    from mlflow.server.security_utils import HEALTH_ENDPOINTS

    paths = {
        "endpoint": (PORT, set(_BENTOML_PATHS & PUBLIC_PATHS)),
        "mlflow": (5000, set(HEALTH_ENDPOINTS)),
        "prefect": (4200, {"/api/health", "/api/ready"}),
        "worker": (8080, {"/health"}),
    }
    for name, (port, server_paths) in paths.items():
        container = CONTAINERS[name]
        assert [item["containerPort"] for item in container["ports"]] == [port]
        probes = [container[probe] for probe in container if probe.endswith("Probe")]
        assert len(probes) >= 2
        assert {probe["httpGet"]["path"] for probe in probes} <= server_paths, name
        check = COMPOSE["services"][name]["healthcheck"]["test"][-1]
        assert any(f"http://127.0.0.1:{port}{path}'" in check for path in server_paths), name
        compile(check, name, "exec")
        arguments = " ".join(container.get("command", ()))
        assert "--port" not in arguments or f"--port={port}" in arguments
    endpoint = CONTAINERS["endpoint"]
    assert endpoint["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert endpoint["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_ports_are_open_on_loopback_only_and_databases_are_not() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert fill_variables(port).startswith("127.0.0.1:"), name
    assert "ports" not in COMPOSE["services"]["postgres"]
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert all(
        service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in objects_by_name("Service").values()
    )
    assert objects_by_name("NetworkPolicy")["default-deny"]["spec"]["podSelector"] == {}


def test_containers_have_minimal_privileges() -> None:
    from bentoml._internal.container.generate import BENTO_UID_GID

    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert any(item.startswith("/tmp") for item in service["tmpfs"]), name
        assert service["restart"] in ("unless-stopped", "on-failure:3"), name
    for name, pod in pods():
        container = pod["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"requests", "limits"} <= set(container["resources"]), name
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name
        user = 999 if name == "postgres" else BENTO_UID_GID
        assert pod["securityContext"]["runAsUser"] == user, name
    assert f"--uid {BENTO_UID_GID} " in DOCKERFILE
    assert DOCKERFILE.rstrip().endswith(f"USER {BENTO_UID_GID}:{BENTO_UID_GID}")


def test_both_databases_are_created() -> None:
    databases = set(re.findall(r"CREATE DATABASE (\w+);", (KUBERNETES / "databases.sql").read_text()))
    text = json.dumps([COMPOSE["services"], OBJECTS])
    assert set(re.findall(r"@postgres:5432/(\w+)", text)) == databases
