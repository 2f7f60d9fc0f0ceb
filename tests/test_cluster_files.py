"""cluster/: what Ray, Kubernetes, Slurm, Docker and a shell would refuse, and what would leave a cluster open."""

import copy
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from offrl_ray.cli import _parser
from offrl_ray.distributed import options
from tests.conftest import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
FILES = sorted(p for p in CLUSTER.iterdir() if p.is_file()) + [REPOSITORY / ".dockerignore"]
LAUNCHED = ["cluster.yaml", "gcp.yaml", "onprem.yaml"]
CLOUDS = ["cluster.yaml", "gcp.yaml"]
KUBERNETES = "1.33"
PROVIDER = {"aws": {"region", "cache_stopped_nodes"}, "gcp": {"region", "availability_zone", "project_id"}}
PROVIDER["local"] = {"head_ip", "worker_ips"}
SECRETS = [
    r"-----BEGIN",
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_\w{20}",
    r"\b[0-9a-fA-F]{32,}\b",
    r"(?i)(auth_token|secret|password|passwd|api_?key)\w*[\"']?\s*[:=]\s*[\"']?[\w/+-]{8,}",
]
OPEN = ["RAY_AUTH_MODE=disabled", "--block-unauth", "0.0.0.0/0"]


def text(name: str) -> str:
    return (CLUSTER / name).read_text()


def launched(name: str) -> dict[str, Any]:
    return yaml.safe_load(text(name))


def shell(script: str) -> str:
    """What bash has against it; empty if nothing."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    return done.stderr


# --- Ray's cluster launcher


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_it_and_fills_in_its_defaults(name: str) -> None:
    config = launched(name)
    assert set(config["provider"]) - {"type"} <= PROVIDER[config["provider"]["type"]]
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_starts_with_the_token_and_keeps_its_dashboard_to_itself(name: str) -> None:
    config = launched(name)
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for commands in (head, workers):
        assert commands[0] == "ray stop"
        (start,) = (c for c in commands if "ray start" in c)
        assert "RAY_AUTH_MODE=token ray start" in start
        assert [shell(c) for c in commands] == [""] * len(commands)
    assert "--dashboard-host=127.0.0.1" in head[-1]
    port = re.search(r"--port=(\d+)", head[-1])
    assert port
    assert f"--address=$RAY_HEAD_IP:{port[1]}" in workers[-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head[-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_get_the_package_the_lock_and_the_token(name: str) -> None:
    config = launched(name)
    mounts, setup = config["file_mounts"], config["setup_commands"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    sources = {local for local in mounts.values() if not local.startswith("~")}
    assert {mounts[f"~/offrl-ray/{s}"] for s in sources} == sources
    assert {"offrl_ray", "cluster", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == sources
    assert [s for s in sources if not (REPOSITORY / s).exists()] == []
    install, modes, bashrc = setup
    assert install.startswith("bash ~/offrl-ray/cluster/install.sh '.[dashboard")
    assert modes == "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"
    assert bashrc.endswith("echo '. ~/offrl-ray/cluster/env.sh' >> ~/.bashrc")
    assert [shell(c) for c in setup] == [""] * 3


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_has_a_head_without_trials_and_spot_workers_from_none_on(name: str) -> None:
    config = launched(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "spot" not in json.dumps(head).lower()
    (gpu,) = types.values()
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == config["max_workers"]
    assert gpu["resources"]["GPU"] == 1
    assert "spot" in json.dumps(gpu["node_config"]).lower()
    assert config["head_setup_commands"] == []


APART = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


def environment(tmp_path: Path, command: str, *before: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in a node's shell, after cluster/env.sh."""
    own = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_TMPDIR": str(tmp_path / "ray")} | env
    script = f". {CLUSTER / 'env.sh'}; {command}"
    return subprocess.run([*before, "bash", "-c", script], env=own, capture_output=True, text=True, timeout=60)


def test_a_node_has_the_token_on_and_a_private_temporary_folder(tmp_path: Path) -> None:
    done = environment(tmp_path, 'echo "$RAY_AUTH_MODE $PATH"; stat -c %a "$RAY_TMPDIR"; echo "$RAY_TMPDIR"')
    (mode_and_path, permissions, folder) = done.stdout.splitlines()
    assert mode_and_path.startswith(f"token {tmp_path}/offrl-ray/venv/bin:")
    assert permissions == "700"
    assert folder == str(tmp_path / "ray")


def test_a_node_ends_its_own_ray_alone(tmp_path: Path) -> None:
    """Ray's own `ray stop` would end both. Among processes apart: a broken one must not end what else runs here."""
    if not shutil.which("unshare") or subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("`unshare` is not possible on this machine, for this user")
    titles = ["/x/raylet/raylet", "/x/gcs/gcs_server", "python /x/ray/_private/log_monitor.py"]
    titles += ["python3.11 -m ray.util.client.server"]
    start = "".join(f"(RAY_TMPDIR={{}} exec -a '{t}' sleep 60 > /dev/null 2>&1) & " for t in titles)
    mine, other = tmp_path / "ray", tmp_path / "other"
    begun = f"{start.format(*[mine] * 4)} {start.format(*[other] * 4)} sleep 0.5; jobs -r | wc -l"
    done = environment(tmp_path, f"{begun}; ray stop; sleep 0.5; jobs -r | wc -l", *APART)
    assert done.stdout.split() == ["8", "4"], done.stderr


def test_a_node_starts_no_ray_in_the_folder_of_another_user(tmp_path: Path) -> None:
    done = environment(tmp_path, "ray --version", RAY_TMPDIR="/proc/1/not-there")
    assert done.returncode == 1
    assert "is not yours" in done.stderr


# --- Kubernetes


def manifests() -> dict[str, Any]:
    return {d["kind"]: d for d in yaml.safe_load_all(text("kuberay-rayjob.yaml"))}


def pod_templates() -> list[Any]:
    spec = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"]["template"], *(w["template"] for w in spec["workerGroupSpecs"])]


def group(more: dict[str, Any], required: list[str]) -> dict[str, Any]:
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    properties = {"rayStartParams": texts, "template": {"type": "object"}} | more
    required = ["rayStartParams", "template", *required]
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


COUNT = {"type": "integer", "minimum": 0}
CLUSTER_SPEC = {
    "type": "object",
    "additionalProperties": False,
    "required": ["rayVersion", "authOptions", "headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"mode": {"enum": ["token", "disabled"]}, "secretName": {"type": "string"}},
        },
        "enableInTreeAutoscaling": {"type": "boolean"},
        "headGroupSpec": group({"serviceType": {"type": "string"}}, []),
        "workerGroupSpecs": {
            "type": "array",
            "items": group(
                {"groupName": {"type": "string"}, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT},
                ["groupName", "minReplicas", "maxReplicas"],
            ),
        },
    },
}
RAYJOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["entrypoint", "rayClusterSpec"],
    "properties": {
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "entrypoint": {"type": "string"},
        "runtimeEnvYAML": {"type": "string"},
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "activeDeadlineSeconds": COUNT,
        "suspend": {"type": "boolean"},
        "rayClusterSpec": CLUSTER_SPEC,
    },
}
"""The fields of KubeRay's RayJob that a sweep may use: no package has its definition, which comes with the operator."""


def test_kubernetes_takes_its_objects() -> None:
    found = manifests()
    assert set(found) == {"PersistentVolumeClaim", "NetworkPolicy", "RayJob"}
    for kind in ("PersistentVolumeClaim", "NetworkPolicy"):
        kubernetes_validate.validate(found[kind], KUBERNETES, strict=True)
    for template in pod_templates():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    job = found["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    jsonschema.validate(job["spec"], RAYJOB)


def test_pods_run_as_nobody_special_and_write_to_the_claim() -> None:
    claim = manifests()["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in pod_templates():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
        assert mounts["/results"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    gpus = [t["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for t in pod_templates()]
    assert gpus == [None, "1"]


def test_the_cluster_has_a_token_and_lets_nobody_else_in() -> None:
    cluster, policy = manifests()["RayJob"]["spec"]["rayClusterSpec"], manifests()["NetworkPolicy"]["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    pods = policy["podSelector"]
    for template in pod_templates():
        assert pods["matchLabels"].items() <= template["metadata"]["labels"].items()
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": pods}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    out, names = policy["egress"]
    assert out == {"to": [{"podSelector": pods}]}
    assert {p["port"] for p in names["ports"]} == {53}
    assert all("podSelector" in peer for rule in (operator["from"], names["to"]) for peer in rule)


def test_the_job_runs_ours_and_is_given_time_to_stop() -> None:
    job = manifests()["RayJob"]["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
    assert job["rayClusterSpec"]["rayVersion"] in (REPOSITORY / "constraints.txt").read_text()
    _, script, *argv = shlex.split(job["entrypoint"])
    parse(script, argv)


# --- Slurm, Docker


@pytest.mark.parametrize("name", ["slurm.sbatch", "install.sh", "env.sh"])
def test_shell_scripts_hold(name: str) -> None:
    assert shell(text(name)) == ""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, CLUSTER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_slurm_job_has_whole_nodes_and_is_told_before_its_end() -> None:
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text("slurm.sbatch"), re.M))
    assert {"exclusive", "requeue", "nodes", "gpus-per-node", "time"} <= set(directives)
    assert directives["ntasks-per-node"] == "1"
    assert re.fullmatch(r"B:USR1@\d+", directives["signal"])
    command = " ".join(text("slurm.sbatch").replace("\\\n", " ").split())
    assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in command
    run = re.search(r"ray symmetric-run (.*?) -- python (.*?) &", command)
    assert run
    told = shlex.split(run[2])[1:]
    assert told.index("$@") < told.index("--name"), "the folder that is stopped is the one that is written"
    parse("tune_configs/tune_cpql.py", [a for a in told if a != "$@"])
    assert '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in command, "a step does not inherit it"


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in text("Dockerfile").replace("\\\n", " ").splitlines() if line and line[0] != "#"]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_holds_the_package_as_locked_for_a_user_without_rights() -> None:
    found = instructions()
    words = [word for word, _ in found]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "ARG", "ENV", "RUN", "USER", "WORKDIR", "COPY"}, "and no EXPOSE: no port is published"
    users = [rest for word, rest in found if word == "USER"]
    assert users == ["ray"]
    installs = [c for word, rest in found if word == "RUN" for c in rest.split("&&") if "pip install" in c]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in c for c in installs)
    assert words.index("USER") < next(i for i, (_, rest) in enumerate(found) if "pip install" in rest)
    assert any("RAY_AUTH_MODE=token" in rest for word, rest in found if word == "ENV")
    let_in = (REPOSITORY / ".dockerignore").read_text().split()
    assert let_in[0] == "*"
    for rest in (rest for word, rest in found if word == "COPY"):
        *sources, _ = [a for a in rest.split() if not a.startswith("--")]
        assert [s for s in sources if f"!{s}" not in let_in or not (REPOSITORY / s).exists()] == []


# --- all files


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_file_holds_a_secret_or_opens_a_door(path: Path) -> None:
    content = path.read_text()
    assert [m[0] for pattern in SECRETS if (m := re.search(pattern, content))] == []
    assert [word for word in OPEN if word in content] == []


def parse(script: str, argv: list[str]) -> None:
    """Whether a sweep script takes such arguments; SystemExit if not."""
    spec = importlib.util.spec_from_file_location("script", REPOSITORY / script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = options.parser(module.SWEEP).parse_args(argv)
    assert args.preset in module.SWEEP.presets


def commands() -> list[list[str]]:
    """Every command of the README's blocks, and those inside `ray exec`."""
    blocks = "".join(re.findall(r"```\n(.*?)```", text("README.md"), re.S)).replace("\\\n", " ")
    found = []
    for line in blocks.splitlines():
        words = shlex.split(line.strip("()"), comments=True)
        for part in " ".join(shlex.quote(w) if " " in w else w for w in words).replace("&&", ";").split(";"):
            found.append(shlex.split(part))
    inner = [shlex.split(words[-1]) for words in found if words[:2] == ["ray", "exec"]]
    return [words for words in found + inner if words]


def test_the_readme_names_every_file_and_only_commands_that_exist() -> None:
    readme = text("README.md")
    assert [
        p.name for p in CLUSTER.iterdir() if p.is_file() and f"`{p.name}`" not in readme and p.name != "README.md"
    ] == []
    seen = set()
    for words in commands():
        seen.add(words[0])
        if words[0] == "ray":
            ray_takes(words[1:])
        inner = words[words.index("--") + 1 :] if words[0] == "kubectl" and "--" in words else words
        if inner[0] == "offrl-ray":
            _parser().parse_args(inner[1:])
        if (script := next((i for i, w in enumerate(words) if w.startswith("tune_configs/")), None)) is not None:
            argv = words[script + 1 :]
            parse(words[script], [a for a in argv if a != "--"])
        for path in (w for w in words if w.startswith("cluster/")):
            assert (REPOSITORY / path).exists(), path
    assert {"ray", "offrl-ray", "kubectl", "sbatch", "docker"} <= seen
    assert """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}'""" in readme


def ray_takes(words: list[str]) -> None:
    command: Any = cli
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    given = words[: words.index("--")] if "--" in words else words
    assert [w for w in given if w.startswith("-") and w.partition("=")[0] not in known] == [], command.name
