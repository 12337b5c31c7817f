"""Benchmarks that were run again: which figures are read, which of them are judged and how far, what is refused."""

import json

import pytest

from selfexplain_jax import benchmark
from selfexplain_jax.report import reproduce_benchmarks as again
from selfexplain_jax.report.run_again import config_of
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.types import UserError

CONFIG = "configs/predecessor.py"
OVERRIDES = ("train.batch_size=32",)


def write(folder, *, ratio=2.0, gflop=16.0, seconds=3.0, overrides=OVERRIDES, **entries):
    """The benchmark.json of a step beside the first implementation's."""
    side = {"ratio": ratio, "contractions": None if gflop is None else gflop * 1e9, "median_seconds": seconds}
    found = {"what": "train", "sides": {"ours": side, "predecessor": side}, "commit": "abcdef0123", "dirty": False}
    found |= {"config": jsonable(config_of(CONFIG, overrides)), "versions": {"jax": "0.10.2", "numpy": "2.4"}}
    found |= {"peers": {"versions": {"torch": "2.13"}}} | entries
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(found))
    return folder


def put(path, folder, *overrides, what="train"):
    arguments = [*overrides, f"--config={CONFIG}", f"--what={what}", "--hardware=two cores"]
    return again.main(["--stored", str(path), "store", "step", str(folder), *arguments])


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "benchmarks.json"
    assert put(path, write(tmp_path / "first"), *OVERRIDES) == 0
    return path


def test_storing_a_benchmark_and_reading_it_again(stored):
    (step,) = again.read_benchmarks(stored).values()
    assert (step.name, step.config, step.what, step.overrides) == ("step", CONFIG, "train", OVERRIDES)
    assert (step.commit, step.hardware) == ("abcdef0", "two cores")
    assert step.versions == {"jax": "0.10.2", "torch": "2.13"}
    ours = {"ours GFLOP": 16.0, "ours s": 3.0}
    assert step.figures == ours | {"predecessor ratio": 2.0, "predecessor GFLOP": 16.0, "predecessor s": 3.0}
    before = stored.read_text()
    again.write_benchmarks(again.read_benchmarks(stored), stored)
    assert stored.read_text() == before and again.read_benchmarks(stored.with_name("none.json")) == {}


def test_what_lies_within_what_is_allowed_and_what_does_not(stored, tmp_path, capsys):
    runs = tmp_path / "runs"
    # A ratio of 2 may be 2 x 1.3 = 2.6 or 2 / 1.3 = 1.538; seconds may be anything.
    for ratio in (2.59, 1.54):
        write(runs / "step", ratio=ratio, seconds=40.0)
        assert again.main(["--stored", str(stored), "compare", str(runs)]) == 0
    text = capsys.readouterr().out
    assert "| step | predecessor ratio | 2      | 1.54     | -0.46      | 0.461538 | yes    |" in text
    assert "| step | predecessor s     | 3      | 40       | +37        | unknown  | -      |" in text
    assert "| step | predecessor ratio | 2      | 2.59     | +0.59      | 0.6     | yes    |" in text
    assert "None differs by more than the spread." in text and "Measured at commit abcdef0." in text
    assert text.strip().endswith((runs / "reproduced_benchmarks.md").read_text().partition("\n\n")[2].strip())
    for ratio, gflop in ((2.61, 16.0), (1.53, 16.0), (2.0, 16.001)):
        write(runs / "step", ratio=ratio, gflop=gflop)
        assert again.main(["--stored", str(stored), "compare", str(runs), "step"]) == 1
    text = capsys.readouterr().out
    assert "1 differ by more than the spread: step: predecessor ratio." in text and again.ADVICE in text
    assert "2 differ by more than the spread: step: ours GFLOP, predecessor GFLOP." in text


@pytest.mark.parametrize(
    ("name", "within", "outside"),
    [
        ("rise ratio", (13.0, 7.7), (13.1, 7.6)),
        ("matrix product share", (13.0, 7.7), (13.1, 7.6)),
        ("predecessor race", (16.0, 6.25), (16.1, 6.2)),
        ("temporary MB", (10.5, 9.53), (10.51, 9.52)),
        ("step GFLOP", (10.000009, 9.999991), (10.00002, 9.99998)),
        ("antithetic 250 agreement", (10.009, 9.991), (10.011, 9.989)),
    ],
)
def test_every_unit_has_its_allowance(name, within, outside):
    stored = again.StoredBenchmark("a", CONFIG, "train", (), "abcdef0", "two cores", {}, {name: 10.0})
    for values, differs in ((within, False), (outside, True)):
        for value in values:
            assert (abs(value - 10.0) > again.allowance(name, stored.figures[name], value)) is differs


def test_units_that_are_not_judged():
    for name in ("compile s", "step ms", "train images/s", "GFLOP/s", "waiting for data %"):
        assert again.allowance(name, 10.0, 99.0) is None


def test_other_versions_are_told(stored, tmp_path, capsys):
    write(tmp_path / "runs" / "step", versions={"jax": "0.11.2"})
    assert again.main(["--stored", str(stored), "compare", str(tmp_path / "runs")]) == 0
    assert "Other versions: jax 0.10.2 stored, 0.11.2 now. Another JAX may count" in capsys.readouterr().out


def test_finished_is_what_has_every_stored_figure_of_that_config(stored, tmp_path, capsys):
    folder = tmp_path / "runs" / "step"

    def finished():
        return again.main(["--stored", str(stored), "finished", str(folder), "step"])

    assert finished() == 3
    write(folder)
    assert finished() == 0
    # Where the peers' process ended on the way there is no ratio: the same command tries again.
    write(folder, ratio=None)
    assert finished() == 3
    assert again.main(["--stored", str(stored), "compare", str(tmp_path / "runs")]) == 2
    assert "step has no predecessor ratio, which is stored: run it again" in capsys.readouterr().err
    write(folder, overrides=("train.batch_size=16",))
    assert finished() == 2
    assert "train.batch_size: 16 there, 32 now" in capsys.readouterr().err
    write(folder, what="explain")
    assert finished() == 2
    assert "is of --what=explain, and step of train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "NONE"], "Nothing of that was measured in"),
        (["compare", "NONE", "huge"], "no stored benchmark 'huge'. Choose among: step"),
        (["store", "x", "NONE", *OVERRIDES], "has no benchmark.json or compile.json of"),
        (["store", "x", "DIRTY", *OVERRIDES], "not from a clean commit"),
        (["store", "x", "DIRTY"], "train.batch_size: 32 there, 8 now"),
        (["store", "x", "DIRTY", "seed"], "'seed' is no FIELD=VALUE"),
        (["store", "x", "STRANGE", *OVERRIDES], "figures of a benchmark 'all'"),
    ],
)
def test_bad_input_is_told(stored, tmp_path, capsys, arguments, message):
    write(tmp_path / "DIRTY", dirty=True)
    write(tmp_path / "STRANGE", what="all")
    names = ("NONE", "DIRTY", "STRANGE")
    arguments = [str(tmp_path / argument) if argument in names else argument for argument in arguments]
    if arguments[0] == "store":
        arguments += [f"--config={CONFIG}", f"--what={'all' if 'STRANGE' in arguments[2] else 'train'}", "--hardware=x"]
    capsys.readouterr()
    assert again.main(["--stored", str(stored), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_every_what_has_a_reader_but_that_of_two_at_once():
    assert set(again.READERS) == set(benchmark.WHAT) - {"all"} | {"compile"}


FOUND = {
    "attribution": {
        "rows": {
            "self_explainer": {
                "ratio": 15.0,
                "median_seconds": {"ours": 0.5, "peer": None},
                "operations_per_map": 2e9,
                "contractions_per_map": 1e9,
                "ratio_to_own_grad_cam": 0.8,
            }
        }
    },
    "backbone": {"tasks": {"forward": {"ratio": 0.6, "median_seconds": {"ours": 0.2, "peer": 0.3}}}},
    "train": {"measured": {"of matrix product %": {"median": 62.0}, "step GFLOP": {"median": 18.0}}},
    "memory": {
        "rise": {"32": 3e6},
        "rise_by_chunk": {"8": 1e6},
        "score_cam": {"": {"channels": 9, "bytes": 2e6}},
    },
    "curves": {
        "rise": {
            "agreement": {"independent": {"250": 0.7}},
            "masks_needed": {"antithetic": {"250": 200.0, "500": None}},
        },
        "score_cam": {"agreement": {"20": 0.9}},
    },
    "time_to_masks": {"sides": {"ours": {"seconds": 50.0}, "predecessor": {"seconds": 350.0}}},
    "compile": {
        "memory_bytes": {"temporary": 4e9},
        "state_bytes_per_device": 5e6,
        "flops": 3e9,
        "collectives": {"all-reduce": {"count": 2, "bytes": 12e6}},
    },
}
FIGURES = {
    "attribution": {
        "self_explainer ratio": 15.0,
        "self_explainer ours s": 0.5,
        "self_explainer GFLOP": 1.0,
        "self_explainer by XLA GFLOP": 2.0,
        "self_explainer over own grad_cam ratio": 1.25,
    },
    "backbone": {"forward ratio": 0.6, "forward ours s": 0.2, "forward peer s": 0.3},
    "train": {"matrix product share": 0.62, "step GFLOP": 18.0},
    "memory": {"rise 32 masks MB": 3.0, "rise 8 at a time MB": 1.0, "score_cam features MB": 2.0},
    "curves": {"independent 250 agreement": 0.7, "score_cam 20 agreement": 0.9, "antithetic instead of 250 share": 0.8},
    "time_to_masks": {"predecessor race": 7.0, "ours s": 50.0, "predecessor s": 350.0},
    "compile": {"temporary MB": 4000.0, "state MB": 5.0, "by XLA GFLOP": 3.0, "all-reduce MB": 12.0},
}


@pytest.mark.parametrize("what", FIGURES)
def test_figures_that_are_read(what):
    assert again.figures_of(FOUND[what] | ({} if what == "compile" else {"what": what})) == FIGURES[what]


def test_a_race_that_nobody_ended_has_no_figure():
    sides = {"ours": {"seconds": 50.0}, "predecessor": {"seconds": None}}
    found = {"what": "time_to_masks", "sides": sides, "ratio": None}
    assert again.figures_of(found) == {"ours s": 50.0}
    with pytest.raises(UserError, match="Do not know figures of a benchmark None"):
        again.figures_of({})
