"""deploy/: manifests, Slurm script and settings say what the CRDs, the shell and our own commands understand.

Without a cluster this is as far as it goes: nothing here has been applied.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from pipeline.cli.app import app
from pipeline.config import RunConfig, resolve_config
from pipeline.settings import read_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
SLURM = DEPLOY / "slurm.sh"

# The fields of ray.io/v1 that are used, with their types; a trailing "!" marks those that must be there. From KubeRay's
# API reference (v1.6); an unknown field would be dropped by the API server without a word.
GROUP: dict[str, Any] = {
    "groupName!": str, "replicas!": int, "minReplicas!": int, "maxReplicas!": int,
    "rayStartParams!": {}, "template!": {"spec!": {}},
}  # fmt: skip
CLUSTER: dict[str, Any] = {
    "rayVersion!": str,
    "enableInTreeAutoscaling": bool,
    "authOptions!": {"mode!": str},
    "headGroupSpec!": {"serviceType!": str, "enableIngress!": bool, "rayStartParams!": {}, "template!": {"spec!": {}}},
    "workerGroupSpecs!": [GROUP],
}
JOB: dict[str, Any] = {
    "entrypoint!": str, "entrypointNumCpus": int, "backoffLimit": int, "submissionMode!": str,
    "shutdownAfterJobFinishes!": bool, "ttlSecondsAfterFinished": int, "rayClusterSpec!": CLUSTER,
}  # fmt: skip


def _check(value: Any, schema: Any, place: str) -> None:
    if isinstance(schema, type):
        assert isinstance(value, schema), f"{place} is {value!r}"
    elif isinstance(schema, list):
        assert value and isinstance(value, list), place
        for index, item in enumerate(value):
            _check(item, schema[0], f"{place}[{index}]")
    else:
        assert isinstance(value, dict), place
        names = {name.rstrip("!"): name for name in schema}
        assert not schema or not set(value) - set(names), f"{place} has unknown fields"
        for name, marked in names.items():
            assert name in value or not marked.endswith("!"), f"{place} has no {name}"
            if name in value:
                _check(value[name], schema[marked], f"{place}.{name}")


def _manifest(name: str) -> dict[str, Any]:
    content = yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = _manifest(name)["spec"]
    return spec if name == "raycluster" else spec["rayClusterSpec"]


@pytest.mark.parametrize(("name", "kind", "schema"), [("raycluster", "RayCluster", CLUSTER), ("rayjob", "RayJob", JOB)])
def test_a_manifest_has_the_fields_of_its_kind_and_no_others(name: str, kind: str, schema: dict[str, Any]) -> None:
    manifest = _manifest(name)
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    _check(manifest["spec"], schema, "spec")


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_cluster_asks_for_a_token_and_shows_no_dashboard_outside(name: str) -> None:
    cluster = _cluster(name)
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["enableIngress"] is False
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_every_pod_sees_the_same_storage_and_runs_the_same_image(name: str) -> None:
    cluster = _cluster(name)
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    claim = _manifest("storage")["metadata"]["name"]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == pods[0]["containers"][0]["image"]
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": claim}} in pod["volumes"]
    assert _manifest("storage")["spec"]["accessModes"] == ["ReadWriteMany"]


def _custom_resources(group: dict[str, Any]) -> dict[str, float]:
    """Read them as the shell on the pod does: KubeRay puts the text on the command line of `ray start`."""
    (text,) = shlex.split(group["rayStartParams"]["resources"])
    found: dict[str, float] = json.loads(text)
    return found


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_each_kind_of_machine_has_a_custom_resource_for_each_of_its_gpus(name: str) -> None:
    groups = {group["groupName"]: group for group in _cluster(name)["workerGroupSpecs"]}
    assert set(groups) == {"sam", "train"}
    for kind, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        gpus = float(container["resources"]["limits"]["nvidia.com/gpu"])
        assert _custom_resources(group) == {kind: gpus}
        assert container["resources"]["requests"] == container["resources"]["limits"]


def _settings() -> RunConfig:
    return resolve_config(read_settings(DEPLOY / "settings.yaml"), (), where="deploy/settings.yaml")


def test_the_settings_fit_the_machines() -> None:
    resources = _settings().resources.model_dump()
    train = resources["train"]
    assert train["workers"] * train["num_gpus"] == 4
    assert train["resources"] == {"train": 1}
    for stage in ("embed", "teacher", "refine", "evaluate"):
        assert resources[stage]["resources"] == {"sam": resources[stage]["num_gpus"]}


def test_teacher_and_refine_fit_onto_one_gpu_beside_each_other() -> None:
    resources = _settings().resources
    assert resources.teacher.num_gpus + resources.refine.num_gpus <= 1


def _parsed(command: str) -> dict[str, Any]:
    """Parse a command line with our own parser; nothing runs."""
    program, name, *arguments = shlex.split(command)
    assert program == "stseg-pipeline"
    group: Any = typer.main.get_command(app)
    parameters: dict[str, Any] = group.commands[name].make_context(name, arguments).params
    return parameters


def test_the_job_s_command_is_one_of_ours() -> None:
    parsed = _parsed(_manifest("rayjob")["spec"]["entrypoint"])
    assert (parsed["n"], parsed["address"]) == (3, "auto")
    assert parsed["run"].is_relative_to("/data")
    assert parsed["config"].is_relative_to("/data")


def _script_commands() -> list[str]:
    return SLURM.read_text().replace("\\\n", " ").splitlines()


def test_the_slurm_script_is_a_shell_script_whose_command_is_one_of_ours() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    (line,) = [line for line in _script_commands() if "stseg-pipeline round" in line and "srun" in line]
    command = line[line.index("stseg-pipeline") :].rstrip(" &")
    for name, value in {"$run": "/shared/run", "$settings": "/shared/s.yaml", "$head:$port": "node1:6379"}.items():
        command = command.replace(name, value)
    assert "$" not in command
    assert _parsed(command)["address"] == "node1:6379"


def test_ray_on_slurm_asks_for_a_token_and_shows_its_dashboard_to_nobody() -> None:
    script = SLURM.read_text()
    starts = [line for line in _script_commands() if "ray start" in line]
    assert len(starts) == 2
    token, first_start = script.index("export RAY_AUTH_MODE=token"), script.index("ray start --head")
    assert script.index("umask 077") < token < first_start
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in script
