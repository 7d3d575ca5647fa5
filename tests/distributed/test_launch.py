"""The files in docs/launch/: their syntax, and what they give to torchrun and to main.py."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from config import COMMANDS, DefaultConfig
from tests.helpers import PROJECT
from utils.options import check_usage

FOLDER = PROJECT / "docs/launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
VALUES = {"ranks": "gpu", "MACHINES": "2:4", "HEAD": "10.0.0.1", "head": "node1", "RUN_ID": "r"}
VALUES |= {
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_CPUS_PER_TASK": "64",
    "SLURM_JOB_ID": "7",
    "SLURM_RESTART_COUNT": "1",
}


def torchrun_words(path: Path) -> list[str]:
    """Return what follows torchrun in a file, with values for its variables."""
    if path.suffix == ".yaml":
        _, job = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return container["command"][1:]
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^(?:exec|srun) torchrun (.*?)(?: &)?$", text, re.M)
    line = line.replace('"$@"', "")
    return [
        re.sub(r"\$\{?(\w+)(:-\w+)?\}?", lambda match: VALUES[match[1]], word)
        for word in shlex.split(line)
    ]


@pytest.mark.parametrize("path", [*SCRIPTS, FOLDER / "kubernetes.yaml"], ids=lambda path: path.name)
def test_torchrun_and_main_take_what_a_file_gives_them(path, pictures, monkeypatch):
    wanted = get_args_parser().parse_args(torchrun_words(path))
    assert wanted.training_script == "main.py" and wanted.nproc_per_node == "gpu"
    command, *words = wanted.training_script_args
    words = [word for word in words if not word.startswith("--train-data-root=")]
    given = [command, *words, f"--train-data-root={pictures / 'train'}"]
    assert check_usage(DefaultConfig, COMMANDS, given)[0] == "train"
    assert wanted.max_restarts > 0
    if path.name != "one_machine.sh":
        assert wanted.rdzv_backend == "c10d" and wanted.rdzv_endpoint.endswith(":29500")
        assert wanted.rdzv_id not in (None, "", "none")  # a restart finds its run by it


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_takes_a_script(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_job_of_slurm_saves_and_requeues_when_its_time_is_nearly_up(tmp_path):
    """With stand-ins for Slurm's programs: srun is a process that notes the signal it gets."""
    tools = {
        "srun": "trap 'echo stopped >> notes; exit 138' USR1\n"
        'echo "$*" >> notes\nkill -USR1 "$PPID"\nwhile :; do sleep 0.05; done',
        "scontrol": '[ "$1" = show ] && echo node1 || echo "$*" >> notes',
    }
    for name, code in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-4]", **VALUES}
    script = [str(FOLDER / "slurm.sh"), "--max-epoch=9"]
    done = subprocess.run(["bash", *script], cwd=tmp_path, env=variables, timeout=60)
    assert done.returncode == 0
    first, *others = (tmp_path / "notes").read_text().splitlines()
    assert "--rdzv-endpoint=node1:29500" in first and first.endswith("--max-epoch=9")
    assert others == ["stopped", "requeue 7"]


def test_the_pods_of_kubernetes_find_the_first_of_them():
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"  # as a text: None would be no value
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    least, most = map(int, re.search(r"--nnodes=(\d):(\d)", str(pod)).groups())
    assert least < most == spec["completions"] == spec["parallelism"]
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:29500" in str(pod)
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
