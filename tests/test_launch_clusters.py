"""The launch scripts of clusters, with stand-ins for Slurm, gcloud and kubectl: what they call and what they refuse."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from selfexplain_jax import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKDIR = "--workdir=gs://bucket/run"
CONFIG = "--config=configs/imagenet.py"

# Variables that are enough for each script, and the command that it calls.
ENOUGH = {
    "slurm.sh": ({"NODES": "2", "GPUS_PER_NODE": "4"}, "sbatch"),
    "tpu_pod.sh": ({"TPU_NAME": "slice", "ZONE": "zone-a"}, "gcloud"),
    "kubernetes.sh": ({"ACCELERATOR": "gpu", "IMAGE": "image:1", "NODES": "2", "GPUS_PER_NODE": "8"}, "kubectl"),
}

# Writes its name, arguments and input, a NUL after each but the last, and a record separator after each call.
STAND_IN = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; if [[ "${0##*/}" != gcloud ]]; then cat; fi; printf '\\036'; } >>"$CALLS"
if [[ "${FAILS:-}" == "${0##*/}" ]]; then exit 3; fi
"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, **variables) -> (the finished process, the calls of the stand-ins: lists of words)."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    for name in ("bash", "env", "dirname", "basename", "cat", "cksum", "rm", "grep"):
        (commands / name).symlink_to(shutil.which(name))
    for name in ("sbatch", "srun", "gcloud", "kubectl", "tar", "python"):
        (commands / name).write_text(STAND_IN)
        (commands / name).chmod(0o755)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(commands / "python")

    def run(script, *arguments, **variables):
        calls.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / script), *arguments],
            env={"PATH": str(commands), "CALLS": str(calls), "SELFEXPLAIN_VENV": str(tmp_path / "venv")} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return done, [call.split("\0") for call in calls.read_text().split("\36") if call]

    run.commands = commands
    return run


def test_every_script_that_starts_a_run_is_tested():
    others = {"arguments.sh", "setup.sh", "test.sh", "parity.sh", "local.sh", "docs.sh", "reproduce.sh"}
    assert {file.name for file in (ROOT / "launch").glob("*.sh")} == set(ENOUGH) | others


@pytest.mark.parametrize("script", [*ENOUGH, "local.sh"])
def test_help_is_the_header_and_names_every_variable(launch, script):
    done, calls = launch(script, "--help")
    assert done.returncode == 0 and not calls and "set -euo" not in done.stdout
    for name in [*ENOUGH.get(script, ({}, ""))[0], "MODE", "--dry-run"]:
        assert name in done.stdout
    text = (ROOT / "launch" / script).read_text()
    for name in re.findall(r"\brequire ([A-Z_]+)|\" ([A-Z_]+) \"", text):
        assert "".join(name) in done.stdout


@pytest.mark.parametrize("script", ENOUGH)
def test_missing_variables_are_named_and_nothing_is_called(launch, script):
    variables, _ = ENOUGH[script]
    done, calls = launch(script, CONFIG, WORKDIR)
    assert done.returncode == 1 and not calls and not done.stdout
    first = list(variables)[: 3 if script == "kubernetes.sh" else None]
    for name in first:
        assert f"error: the variable {name} is not set: " in done.stderr
    for name in variables:
        done, calls = launch(script, CONFIG, WORKDIR, **{n: v for n, v in variables.items() if n != name})
        assert done.returncode == 1 and not calls
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0].startswith(f"error: the variable {name} is not set: ")


BAD = {
    "mode": ("slurm.sh", [WORKDIR], {"MODE": "evaluate"}, "MODE=evaluate is none of: train compile."),
    "number": ("slurm.sh", [WORKDIR], {"NODES": "two"}, "NODES=two must be a whole number of at least 1."),
    "no nodes": ("kubernetes.sh", [WORKDIR], {"NODES": "0"}, "NODES=0 must be a whole number of at least 1."),
    "no workdir": ("slurm.sh", [], {}, "--workdir is missing"),
    "workdir of one worker": ("tpu_pod.sh", ["--workdir=runs/x"], {}, "--workdir=runs/x: all workers write there"),
    "workdir of one pod": ("kubernetes.sh", ["--workdir=runs/x"], {}, "--workdir=runs/x: a pod's own folder"),
    "workdir of a pod's disk": ("kubernetes.sh", ["--workdir=/runs/x"], {}, "--workdir=/runs/x: a pod's own folder"),
    "config elsewhere": (
        "tpu_pod.sh",
        [WORKDIR, "--config=own.py"],
        {},
        "--config=own.py is no file of the repository",
    ),
    "config without value": ("slurm.sh", [WORKDIR, "--config"], {}, "--config needs a value"),
    "accelerator": ("kubernetes.sh", [WORKDIR], {"ACCELERATOR": "npu"}, "ACCELERATOR=npu is none of: tpu gpu."),
    "topology": ("kubernetes.sh", [WORKDIR], {"ACCELERATOR": "tpu"}, "the variable TPU_TOPOLOGY is not set"),
    "job name": ("kubernetes.sh", [WORKDIR], {"JOB_NAME": "My job"}, "JOB_NAME=My job must be at most 40 small"),
    "line break": ("kubernetes.sh", [WORKDIR, "--classes=a\nb"], {}, "an argument holds a line break"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_called(launch, case):
    script, arguments, variables, message = BAD[case]
    done, calls = launch(script, *arguments, **ENOUGH[script][0] | variables)
    assert done.returncode == 1 and not calls
    assert message in done.stderr


@pytest.mark.parametrize("script", ENOUGH)
def test_a_machine_without_the_command_is_told(launch, script):
    variables, command = ENOUGH[script]
    (launch.commands / command).unlink()
    done, _ = launch(script, CONFIG, WORKDIR, **variables)
    assert done.returncode == 1 and f"there is no {command} here" in done.stderr
    assert launch(script, "--dry-run", CONFIG, WORKDIR, **variables)[0].returncode == 0


@pytest.mark.parametrize("script", ENOUGH)
def test_exit_code_of_the_command_is_the_scripts(launch, script):
    variables, command = ENOUGH[script]
    done, calls = launch(script, CONFIG, WORKDIR, FAILS=command, **variables)
    assert done.returncode == 3 and calls[-1][0] == command


def main_flags(words):
    """The flags that main would get, parsed by main itself."""
    place = words.index("selfexplain_jax.main")
    values = main.define_flags(["main"])
    values(["main", *(word for word in words[place + 1 :] if not word.startswith("--config"))])
    return values


@pytest.mark.parametrize("mode", ["train", "compile"])
def test_slurm_job(launch, mode):
    variables = ENOUGH["slurm.sh"][0] | {"MODE": mode, "PARTITION": "gpu", "ACCOUNT": "me", "TIME": "1:00:00"}
    arguments = [CONFIG, "--workdir=shared/a run", "--config.data.data_dir=$HOME x"]
    done, calls = launch("slurm.sh", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == ["python", "sbatch"], "the environment is made before"
    assert "jax[cuda12]" in calls[0], "else JAX would compute on the processors of nodes with GPUs"
    for more, there in (({"GPUS_PER_NODE": "0"}, False), ({"SELFEXPLAIN_PACKAGES": "jax[cuda13]"}, False)):
        assert ("jax[cuda12]" in launch("slurm.sh", *arguments, **variables | more)[1][0]) == there
    *options, job = calls[1][1:]
    assert {
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--partition=gpu",
        "--account=me",
        "--time=1:00:00",
        "--signal=TERM@120",
    } <= set(options)
    # The job, run with a stand-in for srun.
    script = launch.commands / "job"
    script.write_text(job)
    calls_file = launch.commands.parent / "calls"
    calls_file.write_text("")
    environment = {"PATH": str(launch.commands), "CALLS": str(calls_file)}
    subprocess.run(["bash", str(script)], env=environment, check=True, stdin=subprocess.DEVNULL)
    words = calls_file.read_text().rstrip("\36").split("\0")
    assert words[0] == "srun" and "--gpu-bind=none" in words
    assert f"--config={ROOT}/configs/imagenet.py" in words and "--config.data.data_dir=$HOME x" in words
    flags = main_flags([word for word in words if word])
    assert (flags.mode, flags.workdir, flags.coordinator_address) == (mode, "shared/a run", "auto")


def test_slurm_without_gpus_is_a_process_a_node(launch):
    done, _ = launch("slurm.sh", "--dry-run", WORKDIR, NODES="3", GPUS_PER_NODE="0")
    assert done.returncode == 0, done.stderr
    assert "--ntasks-per-node=1" in done.stdout and "gpu" not in done.stdout.replace("--gpus", "gpu").split("JOB")[0]


@pytest.mark.parametrize("mode", ["train", "compile"])
def test_tpu_pod_copies_installs_and_starts(launch, mode):
    variables = ENOUGH["tpu_pod.sh"][0] | {"MODE": mode, "PROJECT": "mine"}
    done, calls = launch("tpu_pod.sh", f"--config={ROOT}/configs/imagenet.py", WORKDIR, "--classes=a b", **variables)
    assert done.returncode == 0, done.stderr
    tar, copy, start = ([word for word in call if word] for call in calls)
    assert tar[0] == "tar" and "--exclude=./.git" in tar and tar[-1] == "."
    assert copy[1:7] == ["compute", "tpus", "tpu-vm", "scp", tar[2], "slice:selfexplain_jax.tar.gz"]
    assert start[1:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice"]
    for call in (copy, start):
        assert {"--zone=zone-a", "--worker=all", "--project=mine"} <= set(call)
    remote = shlex.split(start[-1].removeprefix("--command="))
    assert "SELFEXPLAIN_PACKAGES=jax[tpu] gcsfs" in remote
    place = remote.index("launch/local.sh")
    assert remote[place + 1 :] == [
        "--coordinator_address=auto",
        f"--mode={mode}",
        "--config=configs/imagenet.py",
        WORKDIR,
        "--classes=a b",
    ]


def container_of(job):
    (worker,) = job["spec"]["replicatedJobs"]
    spec = worker["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    return spec, container


@pytest.mark.parametrize("mode", ["train", "compile"])
@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_kubernetes_job(launch, accelerator, mode):
    variables = ENOUGH["kubernetes.sh"][0] | {"ACCELERATOR": accelerator, "MODE": mode}
    if accelerator == "tpu":
        variables |= {"NODES": "4", "TPU_TYPE": "tpu-v5-lite-podslice", "TPU_TOPOLOGY": "4x4"}
    odd = '--classes=a"b\\, $(HOME) ${IMAGE} & c'
    done, calls = launch("kubernetes.sh", CONFIG, WORKDIR, odd, **variables)
    assert done.returncode == 0, done.stderr
    ((*command, document),) = calls
    assert command == ["kubectl", "apply", "-f", "-"]
    job = yaml.safe_load(document)
    assert (job["kind"], job["metadata"]["name"]) == ("JobSet", "selfexplain")
    spec, container = container_of(job)
    assert container["image"] == "image:1"
    assert container["args"] == [f"--mode={mode}", CONFIG, WORKDIR, odd.replace("$", "$$")]
    words = [*container["command"], *container["args"]]
    if accelerator == "tpu":
        selector = spec["template"]["spec"]["nodeSelector"]
        assert set(selector.values()) == {"tpu-v5-lite-podslice", "4x4"}
        assert container["resources"]["limits"] == {"google.com/tpu": 4} and spec["parallelism"] == 4
        assert main_flags(words).coordinator_address == "auto"
    else:
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8} and spec["parallelism"] == 2
        (variable,) = container["env"]
        flags = main_flags([word.replace(f"$({variable['name']})", "1") for word in words])
        assert flags.coordinator_address == "selfexplain-workers-0-0.selfexplain:8482"
        assert (flags.num_processes, flags.process_id) == (2, 1)


def test_kubernetes_template_holds_two_jobs():
    text = (ROOT / "launch" / "kubernetes.yaml").read_text()
    # A number where a number is meant, so that what is parsed has the types of what is sent.
    jobs = list(yaml.safe_load_all(re.sub(r"\$\{\w+\}", "1", text)))
    assert [job["kind"] for job in jobs] == ["JobSet", "JobSet"]
    for job in jobs:
        assert container_of(job)[0]["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_dry_run_prints_what_would_be_handed_over(launch):
    for script, (variables, command) in ENOUGH.items():
        done, calls = launch(script, "--dry-run", CONFIG, WORKDIR, **variables)
        assert done.returncode == 0 and not calls, done.stderr
        assert any(line.startswith(f"{command} ") for line in done.stdout.splitlines())
        assert WORKDIR in done.stdout


def dockerfile():
    """[(instruction, rest of its line)], lines that go on joined."""
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_dockerfile_copies_what_exists_and_starts_main(launch):
    for instruction, rest in dockerfile():
        if instruction == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
    entry = json.loads(dict(dockerfile())["ENTRYPOINT"])
    calls = launch.commands.parent / "calls"
    for dry_run in ("", "1"):
        calls.write_text("")
        environment = {"PATH": str(launch.commands), "CALLS": str(calls), "MODE": "compile", "DRY_RUN": dry_run}
        arguments = [*entry, CONFIG, "--workdir=a b"]
        done = subprocess.run(arguments, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        expected = ["-m", "selfexplain_jax.main", "--mode=compile", CONFIG, "--workdir=a b"]
        if dry_run:
            assert not calls.read_text() and done.stdout.decode().split() == [
                "exec",
                "python",
                *" ".join(expected).split(),
            ]
        else:
            assert calls.read_text().rstrip("\36").split("\0")[1:-1] == expected
