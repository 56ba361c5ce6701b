"""What deploy/ says is what the server does: its flags, its ports, its metrics."""

import itertools
import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from cognate import Client
from serving.settings import Settings
from tests.e2e.conftest import serving
from tests.e2e.test_demo import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(file for file in DEPLOY.rglob("*") if file.suffix in (".yaml", ".json"))
KUBERNETES, SERVICE, BUDGET = yaml.safe_load_all((DEPLOY / "kubernetes/serve.yaml").read_text())
POD = KUBERNETES["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
COMPOSED = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = json.loads((DEPLOY / "grafana/cognate.json").read_text())["panels"]


@pytest.fixture(scope="module")
def metrics(minilm_bundle: Path, sample_index: Path) -> set[str]:
    """The names of the samples that a server publishes that was asked and that refused."""
    port = free_port()
    with (
        serving("--bundle", minilm_bundle, "--index", sample_index, "--metrics-port", port) as (_, target),
        Client(target) as client,
    ):
        client.search("the printer jams")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


def names(expression: str) -> set[str]:
    """The metrics in an expression."""
    return set(re.findall(r"\b(?:cognate|process)_\w+", expression))


@pytest.mark.parametrize(
    "expressions",
    [
        [rule["expr"] for rule in ALERTS],
        [target["expr"] for panel in PANELS for target in panel["targets"]],
    ],
    ids=["alerts", "panels"],
)
def test_what_is_watched_is_measured(metrics: set[str], expressions: list[str]) -> None:
    watched = set().union(*map(names, expressions))
    assert watched
    assert watched <= metrics


def test_the_alerts_are_those_of_the_document() -> None:
    document = (ROOT / "docs/operate.md").read_text()
    for rule in ALERTS:
        assert rule["expr"].replace('{job="cognate"}', "") in document, rule["alert"]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (CONTAINER["args"], {entry["name"]: entry["value"] for entry in CONTAINER["env"]}),
        (COMPOSED["cognate"]["command"], COMPOSED["cognate"]["environment"]),
    ],
    ids=["kubernetes", "compose"],
)
def test_the_server_takes_what_it_is_started_with(
    arguments: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
        assert name.removeprefix("COGNATE_").lower() in Settings.model_fields
    command, *flags = arguments
    assert command == "serve"
    given = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    settings = Settings.load(**given)
    assert settings.metrics_port == 9464
    assert settings.metrics_host == "0.0.0.0"


def test_ports_and_waits_agree() -> None:
    published = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    port = Settings.model_fields["port"].default
    assert published == {"grpc": port, "metrics": 9464}
    assert CONTAINER["readinessProbe"]["grpc"]["port"] == port
    assert SERVICE["spec"]["ports"][0]["port"] == port
    assert SERVICE["spec"]["selector"] == POD["metadata"]["labels"]
    assert BUDGET["spec"]["selector"]["matchLabels"] == POD["metadata"]["labels"]
    grace = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}["COGNATE_GRACE_SECONDS"]
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["spec"]["terminationGracePeriodSeconds"] > float(grace) + pause
    stop = float(COMPOSED["cognate"]["stop_grace_period"].removesuffix("s"))
    assert stop > Settings.model_fields["grace_seconds"].default
    assert yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0][
        "static_configs"
    ] == [{"targets": ["cognate:9464"]}]


def test_no_service_of_the_same_name_sets_variables_that_are_settings() -> None:
    assert POD["spec"]["enableServiceLinks"] is False


def test_files_that_are_mounted_are_there() -> None:
    mounted = [
        volume.split(":")[0]
        for service in COMPOSED.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert all((DEPLOY / path).is_file() for path in mounted)


JOB = yaml.safe_load((DEPLOY / "kubernetes/index-job.yaml").read_text())
"""Fields as in KubeRay's CRD, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml."""


def test_the_job_on_ray_has_fields_that_kuberay_knows() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = JOB["spec"]
    assert spec.keys() <= {
        "activeDeadlineSeconds",
        "backoffLimit",
        "entrypoint",
        "rayClusterSpec",
        "runtimeEnvYAML",
        "shutdownAfterJobFinishes",
        "submissionMode",
        "suspend",
        "ttlSecondsAfterFinished",
    }
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() <= {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"].keys() <= {"rayStartParams", "template", "serviceType"}
    assert workers.keys() == {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    }
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} == volumes


def test_the_job_on_ray_is_a_command_of_ours_for_all_the_workers_that_there_are() -> None:
    command = shlex.split(JOB["spec"]["entrypoint"])
    # Right usage (2 is wrong usage) of what is not there on this machine.
    refused = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: no file is named like /data/records/" in refused.stderr
    (group,) = JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    given = dict(itertools.pairwise(command))
    cores = int(given["--workers"]) * int(given["--worker-cpus"])
    assert cores == group["replicas"] * int(group["rayStartParams"]["num-cpus"])
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line
    )
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    assert f"rayproject/ray:{pinned['ray']}-" in (ROOT / "Dockerfile").read_text()
