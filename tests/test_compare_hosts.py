"""A comparison, and photos to be explained, on several hosts: equal to one, every image and file once, and on again."""

import json
import pathlib
import shutil
import textwrap
import threading

import jax
import numpy as np
import pytest
from command_line import CONFIG_HEAD
from hosts import on_hosts
from PIL import Image
from test_compare import SIZE, breaks_on, brightness_of, colours, settings  # noqa: F401 (a fixture that all here use)
from test_explain import CONFIG as PHOTOS
from test_explain import PREDICTOR, half_red
from test_processes import run, run_beside

from selfexplain_jax import compare, explain, map_numbers, maps
from selfexplain_jax.attribution import METHODS
from selfexplain_jax.types import UserError


def same(ours, theirs, path="results"):
    """Holds results against each other, times aside, which no two runs share."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for name in ours:
            if "second" not in str(name):
                same(ours[name], theirs[name], f"{path}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{path}[{place}]")
    elif isinstance(ours, float):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=path)
    else:
        assert ours == theirs, path


def noise(predictor, images, class_ids, *, rng=None):
    """Maps that the batch's random numbers decide."""
    return jax.random.uniform(rng, (*class_ids.shape, SIZE, SIZE))


@pytest.fixture
def three_methods(monkeypatch):
    """Ten images in three batches, of which one image cannot be explained, and a method of random numbers."""
    config = settings(ground_truth={}, noise={}, broken={})
    config.comparison.metrics = {"segmentation": {}, "road": {"percentages": (50,)}}
    config.comparison.sanity_checks.images, config.comparison.sanity_checks.methods = 6, ("noise",)
    monkeypatch.setitem(METHODS, "noise", noise)
    monkeypatch.setitem(METHODS, "broken", breaks_on(brightness_of(config, 5)))
    return config


@pytest.fixture
def written(monkeypatch):
    """(host, file's name with its folder's) of all that is written with the maps and numbers, in order."""
    found, real = [], maps.write_whole

    def write_whole(path, content):
        found.append((jax.process_index(), f"{path.parent.name}/{path.name}"))
        real(path, content)

    monkeypatch.setattr(maps, "write_whole", write_whole)
    return found


def test_hosts_together_find_what_one_does_and_each_file_is_written_once(tmp_path, monkeypatch, three_methods, written):
    grids = []
    monkeypatch.setattr(compare, "save_grid", lambda path, cells, titles, also=(): grids.append((cells, titles)))
    one = compare.compare(three_methods, tmp_path / "1")
    assert one["images"] == 9 and one["methods"]["noise"]["counts"]["road"] == 9
    # Of the first six images one is left out. What is no network cannot be redrawn: every host says so.
    assert one["sanity_checks"]["noise"]["images"] == 5
    assert set(one["sanity_checks"]["noise"]["failures"]) == {"cascading", "independent"}
    names = sorted(name.removeprefix("1/") for _, name in written)
    table = json.loads((tmp_path / "1" / "examples.json").read_text())
    assert len(table["rows"]) == 10
    # Two share three batches; of four, one has none.
    for hosts in (2, 4):
        written.clear()
        folder = tmp_path / str(hosts)
        for found in on_hosts(monkeypatch, hosts, lambda host, folder=folder: compare.compare(three_methods, folder)):
            same(found, one)
        assert sorted(name.removeprefix(f"{hosts}/") for _, name in written) == names
        for host, name in written:
            number = pathlib.Path(name).stem
            assert host == (int(number) % hosts if number.isdecimal() else 0), name
        same(json.loads((folder / "examples.json").read_text()), table)
        with np.load(tmp_path / "1" / "examples.npz") as ours, np.load(folder / "examples.npz") as theirs:
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_allclose(ours[name].astype(float), theirs[name].astype(float), atol=1, err_msg=name)
    # One figure a comparison, and the same one.
    (cells, titles), *others = grids
    assert len(others) == 2
    for same_cells, same_titles in others:
        assert titles == same_titles and cells.keys() == same_cells.keys()
        for label in cells:
            for ours, theirs in zip(cells[label], same_cells[label], strict=True):
                assert (ours is None) == (theirs is None)
                np.testing.assert_allclose(0 if ours is None else ours, 0 if theirs is None else theirs, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (2, 1)])
def test_an_interrupted_comparison_goes_on_with_another_number_of_hosts(tmp_path, monkeypatch, before, after):
    config = settings(constant={}, flaky={})
    lock, calls = threading.Lock(), []

    def flaky(predictor, images, class_ids, *, rng=None):
        with lock:
            calls.append(len(images))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return noise(predictor, images, class_ids, rng=rng)

    monkeypatch.setitem(METHODS, "flaky", flaky)
    with pytest.raises(KeyboardInterrupt):
        on_hosts(monkeypatch, before, lambda host: compare.compare(config, tmp_path))
    kept = len(list((tmp_path / "maps" / "flaky").glob("*.npz")))
    done = len(calls)
    resumed = on_hosts(monkeypatch, after, lambda host: compare.compare(config, tmp_path))
    # Three batches, and of them those that were not kept.
    assert kept >= 1 and len(calls) - done == 3 - kept
    same(resumed[-1], compare.compare(config, tmp_path / "whole"))
    # All is there: nothing is computed again, on any number of hosts.
    monkeypatch.setitem(METHODS, "flaky", None)
    monkeypatch.setattr(compare, "build_method", lambda name, **options: None)
    monkeypatch.setattr(map_numbers, "measure", None)
    for hosts in (1, 3):
        same(on_hosts(monkeypatch, hosts, lambda host: compare.compare(config, tmp_path))[0], resumed[0])


def test_hosts_may_have_folders_of_their_own(tmp_path, monkeypatch):
    config = settings(constant={}, noise={})
    monkeypatch.setitem(METHODS, "noise", noise)

    def work(host):
        return compare.compare(config, tmp_path / f"host_{host}")

    first = on_hosts(monkeypatch, 2, work)
    stored = [sorted(path.stem for path in tmp_path.glob(f"host_{host}/maps/noise/*")) for host in (0, 1)]
    assert stored == [["00000", "00002"], ["00001"]]
    same(first[1], compare.compare(config, tmp_path / "one"))
    # The second one's folder holds no numbers, and nothing is computed again all the same.
    monkeypatch.setattr(compare, "build_method", lambda name, **options: None)
    monkeypatch.setattr(map_numbers, "measure", None)
    same(on_hosts(monkeypatch, 2, work)[1], first[0])
    config.seed = 7
    with pytest.raises(UserError, match="seed: 0 there, 7 now"):
        compare.compare(config, tmp_path / "host_1")


def test_a_metric_that_fails_on_one_host_has_failed_on_all(tmp_path, monkeypatch):
    config, real = settings(constant={}), map_numbers.measure

    def broken(name, predictor, seen, **options):
        if name == "pointing_game" and jax.process_index() == 1:
            raise RuntimeError("out of memory")
        return real(name, predictor, seen, **options)

    with monkeypatch.context() as patch:
        patch.setattr(map_numbers, "measure", broken)
        for found in on_hosts(patch, 2, lambda host: compare.compare(config, tmp_path)):
            row = found["methods"]["constant"]
            assert row["metric_failures"] == {"pointing_game": "RuntimeError: out of memory"}
            assert "pointing_game" not in row["metrics"] and row["counts"]["iou"] == 10


# ---- Photos ----------------------------------------------------------------------------------------------------------


def test_photos_are_shared_and_the_first_host_writes_the_index(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        half_red(40 + number).save(photos / f"{number}.png")
    (photos / "2b.txt").write_text("no image")

    def work(folder):
        return explain.explain_folder(PREDICTOR, PHOTOS, images=photos, output_dir=tmp_path / folder, batch_size=2)

    one = work("one")
    read, real = [], explain.photo_files.read_photos
    monkeypatch.setattr(
        explain.photo_files, "read_photos", lambda files, *rest: read.append([*files]) or real(files, *rest)
    )
    for found in on_hosts(monkeypatch, 2, lambda host: work("many")):
        same(found, one)
    assert sorted(file.name for files in read for file in files) == sorted(file.name for file in photos.iterdir())
    assert json.loads((tmp_path / "many" / "index.json").read_text()) == json.loads(
        (tmp_path / "one" / "index.json").read_text()
    )
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    # More hosts than photos, and none that can be read.
    with pytest.raises(UserError, match="None of the 1 files"):
        on_hosts(
            monkeypatch,
            2,
            lambda host: explain.explain_folder(
                PREDICTOR, PHOTOS, images=photos / "2b.txt", output_dir=tmp_path / "none"
            ),
        )


def test_hosts_that_find_other_photos_are_told(tmp_path, monkeypatch):
    for host in (0, 1):
        (tmp_path / str(host)).mkdir()
        for number in range(host + 1):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / str(host) / f"{number}.png")
    with pytest.raises(UserError, match="Process 1 finds 2 photos and process 0 1, or others"):
        on_hosts(
            monkeypatch,
            2,
            lambda host: explain.explain_folder(
                PREDICTOR, PHOTOS, images=tmp_path / str(host), output_dir=tmp_path / "out"
            ),
        )


# ---- Processes -------------------------------------------------------------------------------------------------------

CONFIG = (
    CONFIG_HEAD
    + """
        config.data.options.test_size = 7
        config.method = "classifier"
        config.train.batch_size = 8
        config.train.steps = 2
        config.train.evaluate = False
        # Four batches: two for each of two processes, the last one padded.
        config.evaluation.batch_size = 2
        config.evaluation.examples = 4
        if variant == "compare":
            comparison = config.comparison
            comparison.models = {"tiny": ""}
            comparison.methods = {"learned": {}, "gradient": {}, "rise": {"options": {"num_masks": 8}}}
            comparison.methods.ground_truth = {}
            comparison.metrics = {"segmentation": {}, "average_drop": {}, "road": {"percentages": (50,)}}
            comparison.sanity_checks.images, comparison.sanity_checks.stages = 5, 2
            comparison.sanity_checks.methods = ("gradient",)
            comparison.figure_images = 3
        return config
"""
)


@pytest.mark.slow
def test_two_processes_compare_like_one_and_one_goes_on_from_what_they_kept(tmp_path):
    config_file, model = tmp_path / "tiny.py", tmp_path / "model"
    config_file.write_text(textwrap.dedent(CONFIG))
    run(config_file, model, 1)
    flags = ["--mode=evaluate", f"--config.comparison.models.tiny={model}"]
    one, two, spec = tmp_path / "one", tmp_path / "two", f"{config_file}:compare"
    run_beside((spec, one, 1, *flags), (spec, two, 2, *flags))
    # Some of it is lost, and one process goes on from the rest.
    again = shutil.copytree(two, tmp_path / "again")
    for name in ("maps/rise/00001.npz", "metrics/rise.json", "sanity_checks/gradient.json", "comparison.json"):
        (again / name).unlink()
    run(spec, again, 1, *flags)
    found = [json.loads((folder / "comparison.json").read_text()) for folder in (one, two, again)]
    assert found[0]["images"] == 7 and found[0]["methods"]["rise"]["counts"]["road"] == 7
    # A network that was trained as a classifier has no masks: what fails everywhere is named by both.
    assert len(found[1]["methods"]["learned"]["failures"]) == 7
    checked = found[0]["sanity_checks"]["gradient"]
    assert checked["images"] == 5 and not checked["failures"]
    for name in ("methods", "images", "left_out", "controls", "asks_the_model", "sanity_checks"):
        same(found[1][name], found[0][name], name)
        same(found[2][name], found[0][name], name)
    tables = [json.loads((folder / "examples.json").read_text()) for folder in (one, two)]
    same(*tables)
    for name in ("pictures/comparison.png", "pictures/comparison.pdf", "comparison.csv", "report.html"):
        assert (two / name).is_file(), name
