"""launch/reproduce.sh with a stand-in for Python: which runs it starts, which it leaves out, what it refuses."""

import os
import pathlib
import re
import subprocess

import pytest

from selfexplain_jax.report.reproduce_benchmarks import read_benchmarks
from selfexplain_jax.report.reproduce_comparisons import read_comparisons
from selfexplain_jax.report.stored import read_stored

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Writes one line per call. What has a results.json is finished; a training makes one. FAIL is its exit code.
FAKE_PYTHON = """#!/usr/bin/env bash
printf '%s|' "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
case "$*" in
  *"reproduce finished"* | *"reproduce_"*" finished"*) if [[ -e "$4/results.json" ]]; then exit 0; fi; exit 3 ;;
  *"reproduce compare"* | *"reproduce_"*" compare"*) exit "${DIFFERS:-0}" ;;
  *selfexplain_jax.main*)
    for argument in "$@"; do
      if [[ "$argument" == --workdir=* ]]; then mkdir -p "${argument#*=}"; touch "${argument#*=}/results.json"; fi
    done
    exit "${FAIL:-0}" ;;
esac
"""


@pytest.fixture
def reproduce(tmp_path):
    """reproduce(*arguments, **variables) -> (the finished process, the calls of Python but those of pip)."""
    calls, python = tmp_path / "calls", tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def run(*arguments, **variables):
        calls.write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in ("TFDS_DATA_DIR", "SELFEXPLAIN_DATA")}
        own = {"CALLS": str(calls), "SELFEXPLAIN_VENV": str(tmp_path / "venv")}
        own["SELFEXPLAIN_PARITY_VENV"] = str(tmp_path / "parity")
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / "reproduce.sh"), *arguments],
            env=kept | own | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return done, [call for call in calls.read_text().splitlines() if "|pip|" not in call]

    return run


def test_its_rows_are_the_stored_ones():
    text = (ROOT / "launch" / "reproduce.sh").read_text()
    rows = text.split("\nrows=(\n", 1)[1].split("\n)", 1)[0]
    listed = re.findall(r'^  "(\S+) (\S+) (\S+) (\S+) \S+(?: \S+=\S+)?"$', rows, re.MULTILINE)
    stored = [
        (row.table, row.name, row.config, ",".join(str(run.seed) for run in row.runs))
        for row in read_stored().values()
        if not row.superseded
    ]
    assert listed == stored, "rows of launch/reproduce.sh and of docs/results.json must be the same, in one order"
    hours = float(re.search(r"([\d.]+) hours of training", text).group(1))
    minutes = sum(run.minutes for row in read_stored().values() if not row.superseded for run in row.runs)
    assert hours == pytest.approx(minutes / 60, abs=0.06)


def test_its_comparisons_are_the_stored_ones():
    text = (ROOT / "launch" / "reproduce.sh").read_text().split("\ncomparisons=(\n", 1)[1].split("\n)", 1)[0]
    listed = [line.strip().strip('"').split() for line in text.splitlines()]
    rows = read_stored()
    for name, config, models, _, *overrides in listed:
        stored = read_comparisons()[name]
        assert (stored.config, list(stored.overrides)) == (config, overrides)
        assert ",".join(f"{model}={row}" for model, row in stored.models.items()) == models
        assert all(not rows[row].superseded for row in stored.models.values())
    assert [name for name, *_ in listed] == list(read_comparisons())


def test_its_benchmarks_are_the_stored_ones():
    text = (ROOT / "launch" / "reproduce.sh").read_text().split("\nbenchmarks=(\n", 1)[1].split("\n)", 1)[0]
    listed = [line.strip().strip('"').split() for line in text.splitlines()]
    assert [name for name, *_ in listed] == list(read_benchmarks())
    for name, config, what, needs, *overrides in listed:
        stored = read_benchmarks()[name]
        assert (stored.config, stored.what, list(stored.overrides)) == (config, what, overrides)
        # What was measured beside the peers names their versions.
        assert ("peers" in needs.split(",")) == (list(stored.versions) != ["jax"]), name
        assert ("photos" in needs.split(",")) == (what in ("attribution", "metrics", "memory", "curves"))


def test_benchmarks_are_run_with_what_they_need_and_then_compared(reproduce, tmp_path):
    peers = tmp_path / "parity" / "bin" / "python"
    peers.parent.mkdir(parents=True)
    peers.write_text("")
    peers.chmod(0o755)
    (tmp_path / "my photos").mkdir()
    names = ("pipeline", "rise", "time_to_masks", "compile_1000_classes")
    done, calls = reproduce(*names, "--runs=my runs", "--photos=my photos")
    assert done.returncode == 0, done.stderr
    pipeline, rise, race, compiled = [call for call in calls if "|selfexplain_jax.main|" in call]
    measured = "--mode=benchmark|--what={what}|--json=my runs/{name}/benchmark.json|"
    start = f"-m|selfexplain_jax.main|--config={ROOT}/configs/"
    assert pipeline == start + "synthetic.py|--workdir=my runs/pipeline|" + measured.format(
        what="pipeline", name="pipeline"
    )
    assert (
        rise
        == start
        + "imagenet.py:classifier|--workdir=my runs/rise|"
        + measured.format(what="attribution", name="rise")
        + f"--images=my photos|--peers={peers}|--config.benchmark.rows=('rise',)|"
    )
    assert f"--peers={peers}|--config.benchmark.peer_config={ROOT}/configs/predecessor.py|" in race
    assert compiled.endswith("--workdir=my runs/compile_1000_classes|--mode=compile|--config.train.batch_size=32|")
    assert calls[-1] == f"-m|selfexplain_jax.report.reproduce_benchmarks|compare|my runs|{'|'.join(names)}|"
    # What is finished is not run again, and a difference is the exit code.
    done, calls = reproduce(*names, "--runs=my runs", "--photos=my photos", DIFFERS="1")
    assert not [call for call in calls if "|selfexplain_jax.main|" in call] and done.returncode == 1


def test_benchmarks_that_lack_something_are_left_out_and_said_to_be(reproduce, tmp_path):
    done, _ = reproduce("benchmarks", "--dry-run")
    assert done.returncode == 0
    alone = [name for name, one in read_benchmarks().items() if one.what in ("pipeline", "train", "explain", "compile")]
    alone = [name for name in alone if not name.startswith("step_")]
    assert [re.search(r"/(\w+) --mode", line).group(1) for line in done.stdout.splitlines()[:-1]] == alone
    assert done.stderr.count("is left out: it needs") == len(read_benchmarks()) - len(alone)
    assert "Row memory is left out: it needs photographs, and there is no folder of them" in done.stderr
    assert "Row step_unet is left out: it needs the published implementations" in done.stderr
    (tmp_path / "data" / "photos").mkdir(parents=True)
    # What is compiled for its figures alone is compiled without the flag that local.sh has for some processors.
    compiled = [line for line in done.stdout.splitlines() if "--mode=compile" in line]
    assert len(compiled) == 3 and all(line.startswith("env XLA_FLAGS=/dev/null bash ") for line in compiled)
    done, _ = reproduce("memory", "--dry-run", SELFEXPLAIN_DATA=str(tmp_path / "data"))
    assert done.returncode == 0 and f"--images={tmp_path}/data/photos" in done.stdout


def test_every_list_is_compared_and_any_difference_is_the_exit_code(reproduce):
    done, calls = reproduce("texture", "methods_synthetic", "pipeline", "--runs=runs", DIFFERS="1")
    assert done.returncode == 1
    assert [call.split("|")[1] for call in calls if "|compare|" in call] == [
        f"selfexplain_jax.report.{name}" for name in ("reproduce", "reproduce_comparisons", "reproduce_benchmarks")
    ]
    done, calls = reproduce("texture", "pipeline", "--runs=runs", DIFFERS="2")
    assert done.returncode == 2 and len([call for call in calls if "|compare|" in call]) == 1


def test_a_comparison_trains_its_models_first_and_is_then_compared(reproduce, tmp_path):
    done, calls = reproduce("methods_synthetic", "--runs=my runs")
    assert done.returncode == 0, done.stderr
    ran = [call for call in calls if "|selfexplain_jax.main|" in call]
    folders = [re.search(r"--workdir=my runs/(\w+)", call).group(1) for call in ran]
    assert folders == ["synthetic_seed0", "classifier_seed0", "random_labels_seed0", "methods_synthetic"]
    assert "|--mode=evaluate|" in ran[-1] and f"--config={ROOT}/configs/compare_synthetic.py:sanity|" in ran[-1]
    assert "--config.comparison.models.random_label_classifier=my runs/random_labels_seed0|" in ran[-1]
    assert calls[-1] == "-m|selfexplain_jax.report.reproduce_comparisons|compare|my runs|methods_synthetic|"
    assert not any("|compare|my runs|" in call and "reproduce|" in call for call in calls)
    # What is finished is not run again, and a difference is the exit code.
    done, calls = reproduce("methods_synthetic", "--runs=my runs", DIFFERS="1")
    assert not [call for call in calls if "|selfexplain_jax.main|" in call] and done.returncode == 1
    assert "Comparison methods_synthetic: finished before, in my runs/methods_synthetic." in done.stderr


def test_rows_are_run_each_seed_and_then_compared(reproduce, tmp_path):
    done, calls = reproduce("synthetic", "texture", "--runs=my runs")
    assert done.returncode == 0, done.stderr
    trained = [call for call in calls if "|selfexplain_jax.main|" in call]
    texture = f"--config={ROOT}/configs/synthetic.py:texture|--workdir=my runs/texture_seed0|--config.seed=0|"
    assert len(trained) == 4 and trained[3] == f"-m|selfexplain_jax.main|{texture}"
    assert "--workdir=my runs/synthetic_seed2|--config.seed=2|" in trained[2]
    assert calls[-1] == "-m|selfexplain_jax.report.reproduce|compare|my runs|synthetic|texture|"
    # What is finished is not run again.
    (tmp_path / "my runs" / "synthetic_seed1" / "results.json").unlink()
    done, calls = reproduce("synthetic", "texture", "--runs=my runs")
    assert [call for call in calls if "|selfexplain_jax.main|" in call] == [trained[1]]
    assert "Row texture, seed 0: finished before, in my runs/texture_seed0." in done.stderr


def test_a_row_that_takes_the_run_of_another_trains_that_first_with_its_seed(reproduce):
    done, calls = reproduce("explainer", "--seeds=4", "--runs=my runs")
    assert done.returncode == 0, done.stderr
    classifier, explainer = [call for call in calls if "|selfexplain_jax.main|" in call]
    assert f"--config={ROOT}/configs/synthetic.py:classifier|--workdir=my runs/classifier_seed4|" in classifier
    assert f"--config={ROOT}/configs/synthetic.py:explainer|--workdir=my runs/explainer_seed4|" in explainer
    assert "--config.seed=4|--config.explainer.classifier=my runs/classifier_seed4|" in explainer
    assert calls[-1] == "-m|selfexplain_jax.report.reproduce|compare|my runs|explainer|"


def test_a_difference_is_the_exit_code_and_a_failed_run_is_another(reproduce):
    assert reproduce("texture", "--runs=runs", DIFFERS="1")[0].returncode == 1
    for code, expected in (("1", 2), ("143", 143)):
        done, calls = reproduce("shape", f"--runs=runs{code}", FAIL=code)
        assert done.returncode == expected and "compare" not in calls[-1]


def test_other_seeds(reproduce):
    done, calls = reproduce("texture", "--seeds=3,4", "--runs=runs")
    assert [call.split("|")[-2] for call in calls if "|selfexplain_jax.main|" in call] == [
        "--config.seed=3",
        "--config.seed=4",
    ]


def test_mnist_is_left_out_and_said_to_be_where_it_is_not_prepared(reproduce, tmp_path):
    done, _ = reproduce("main", "--dry-run")
    assert done.returncode == 0 and "mnist.py" not in done.stdout
    assert "Row canvas is left out: it needs mnist" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("multi canvas mnist"), "the comparison says that they are missing"
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    for done, _ in (
        reproduce("mnist", "--dry-run", "--data_dir=data"),
        reproduce("mnist", "--dry-run", "--data_dir=elsewhere", "--data_dir=data"),
        reproduce("mnist", "--dry-run", TFDS_DATA_DIR="data"),
    ):
        assert done.returncode == 0 and "--config.data.data_dir=data" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "mnist nosuch",
            "there is no row nosuch. Choose among: main ablation photographs other comparisons benchmarks synthetic",
        ),
        ("mnist --seeds=a", "seeds are whole numbers with commas between"),
        ("mnist --config.train.steps=3", "do not know --config.train.steps=3"),
        ("mnist", "row mnist needs mnist"),
        ("rise", "row rise needs photographs, and there is no folder of them, as neither"),
        ("backbone", "row backbone needs the published implementations, and there is no"),
        ("mnist --data_dir=nowhere", ""),
    ],
)
def test_bad_input_is_told_before_anything_runs(reproduce, arguments, message):
    done, calls = reproduce(*arguments.split())
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_dry_run_makes_nothing(reproduce, tmp_path):
    done, calls = reproduce("--dry-run", "ablation")
    assert done.returncode == 0 and not calls
    rows = [row for row in read_stored().values() if row.table == "ablation" and not row.superseded]
    assert len(done.stdout.splitlines()) == len(rows) + 1 and "launch/local.sh --config=" in done.stdout
