"""Folders of runs on the disk and in a bucket; the bucket is one in memory behind the same library."""

import json

import fsspec
import numpy as np
import pytest
from event_files import shown_scalars
from fsspec.implementations.memory import MemoryFileSystem

from selfexplain_jax import folders, pictures
from selfexplain_jax.compare import compare
from selfexplain_jax.config import base_config
from selfexplain_jax.evaluate import read_results, write_results
from selfexplain_jax.training import writers
from selfexplain_jax.training.checkpoint import CheckpointStore, check_writable
from selfexplain_jax.types import UserError


class Buckets(MemoryFileSystem):
    """gs:// in memory; like gcsfs it cannot append."""

    protocol = ("gcs", "gs")
    store = {}
    pseudo_dirs = [""]
    refused = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/")

    def open(self, path, mode="rb", **options):
        if "a" in mode or self.refused:
            raise PermissionError("403: not allowed")
        return super().open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("etils.epath")
    fsspec.register_implementation("gcs", Buckets, clobber=True)
    monkeypatch.setattr(Buckets, "store", {})
    monkeypatch.setattr(Buckets, "refused", False)
    return Buckets.store


def test_a_path_is_a_folder_or_a_known_bucket(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.open_folder("~/runs") == tmp_path / "runs"
    path = folders.open_folder("gs://bucket/run") / "pictures" / "a.png"
    assert str(path) == "gs://bucket/run/pictures/a.png" and folders.in_bucket(path)
    assert str(folders.open_folder(path)) == str(path), "opening it again changes nothing"
    with pytest.raises(UserError, match="ftp://host/run is no folder.*gs://, s3://, az://"):
        folders.open_folder("ftp://host/run")


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_files_are_whole_and_replaced(tmp_path, bucket, place):
    folder = folders.open_folder(tmp_path if place == "disk" else "gs://bucket/run")
    for content in (b"first", b"second"):
        folders.write_whole(folder / "deep" / "file", content)
        assert (folder / "deep" / "file").read_bytes() == content
    assert [path.name for path in (folder / "deep").iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_results_and_pictures(tmp_path, bucket, place):
    folder = str(tmp_path / "run") if place == "disk" else "gs://bucket/run"
    write_results(f"{folder}/results.json", base_config(), {"accuracy": 0.5})
    assert read_results(f"{folder}/results.json")["metrics"] == {"accuracy": 0.5}
    pictures.save_grid(f"{folder}/pictures/a.png", {"grey": [np.zeros((4, 4))]})
    assert folders.open_folder(f"{folder}/pictures/a.png").read_bytes().startswith(b"\x89PNG")
    if place == "bucket":
        assert sorted(bucket) == ["/bucket/run/pictures/a.png", "/bucket/run/results.json"]
        assert not list(tmp_path.iterdir()), "nothing lies in a folder called gs:"


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_metrics_go_on_where_they_were(tmp_path, bucket, place):
    folder = str(tmp_path) if place == "disk" else "gs://bucket/run"
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = writers.MetricWriter(folder, resume_step=start)
        for step in steps:
            writer.scalars(step, {"loss": start})
        writer.close()
    lines = (folders.open_folder(folder) / "metrics.jsonl").read_text().splitlines()
    assert [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] == [(1, 0), (2, 0), (3, 2), (4, 2)]
    assert shown_scalars(folders.open_folder(folder))["loss"] == [(1, 0), (2, 0), (3, 2), (4, 2)]


def test_a_bucket_that_refuses_is_named_with_the_package_it_needs(bucket, monkeypatch):
    check_writable("gs://bucket/run")
    assert not bucket, "nothing is left behind"
    monkeypatch.setattr(Buckets, "refused", True)
    with pytest.raises(UserError, match="Cannot write to gs://bucket/run .*403.*package gcsfs"):
        check_writable("gs://bucket/run")


def test_a_bucket_without_checkpoints_is_told(bucket):
    with pytest.raises(UserError, match="gs://bucket/run holds no checkpoints"):
        CheckpointStore("gs://bucket/run", base_config(), read_only=True)


def test_a_comparison_stays_on_the_disk(bucket):
    with pytest.raises(UserError, match="keeps its maps in a folder of this machine"):
        compare(base_config(), "gs://bucket/run")
