"""Preparing photo sets from folders and archives, all or nothing, bad photos named; and archives that mean harm."""

import functools
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from selfexplain_jax.data import archives, builders, fakes, photo_set, prepare, raw
from selfexplain_jax.data.archives import Archive
from selfexplain_jax.data.cub import CUB
from selfexplain_jax.data.voc import VOC
from selfexplain_jax.types import UserError


@pytest.fixture
def voc_layout(tmp_path):
    fakes.write_voc(tmp_path / "raw", 2012)
    return tmp_path / "raw"


def run(*arguments):
    return prepare.main([f"--{key}={value}" if value is not True else f"--{key}" for key, value in arguments])


def left_behind(folder):
    return [str(path) for path in folder.rglob("incomplete*")] if folder.exists() else []


# ---- Whole -----------------------------------------------------------------------------------------------------------


def test_prepare_says_what_is_there_and_leaves_it_alone_the_next_time(voc_layout, tmp_path, capsys):
    arguments = (("dataset", "voc2012"), ("data_dir", tmp_path / "data"), ("manual_dir", voc_layout))
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert "7 photos (train 4, val 2, trainval 6, main_train 5); 1 without any object" in said
    assert "1 photos without a mask" in said and left_behind(tmp_path / "data") == []
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert run(*arguments) == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert len(VOC("voc2012", 32, 0, str(tmp_path / "data")).source("trainval")) == 6


def pack(folder, file):
    """Packs what is in `folder`, as a tar, tgz or zip by the ending."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as opened:
            for path in sorted(folder.rglob("*")):
                opened.write(path, path.relative_to(folder))
    else:
        with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as opened:
            for path in sorted(folder.iterdir()):
                opened.add(path, path.name)


def test_archives_are_unpacked_and_the_unpacked_deleted(voc_layout, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    pack(voc_layout, manual / "VOCtrainval_11-May-2012.tar")
    assert "7 photos" in prepare.prepare("voc2012", str(tmp_path / "data"), str(manual))
    assert left_behind(tmp_path / "data") == [] and [path.name for path in manual.iterdir()] == [
        "VOCtrainval_11-May-2012.tar"
    ]
    from_folder = builders.write_photo_set(
        "voc2012", prepare.PHOTO_SETS["voc2012"][0](voc_layout), str(tmp_path / "two")
    )
    assert from_folder == photo_set.prepared_metadata("voc2012", str(tmp_path / "data"))


def test_segmentations_archive_beside_an_unpacked_folder(tmp_path):
    fakes.write_cub(tmp_path / "manual")
    segmentations = tmp_path / "packed"
    segmentations.mkdir()
    (tmp_path / "manual/segmentations").rename(segmentations / "segmentations")
    pack(segmentations, tmp_path / "manual/segmentations.tgz")
    prepare.prepare("cub200", str(tmp_path / "data"), str(tmp_path / "manual"))
    dataset = CUB(32, 0, str(tmp_path / "data"))
    assert dataset.info.has_masks and dataset.source("train")[1]["mask"].max() == 2
    assert (tmp_path / "manual/CUB_200_2011/images.txt").is_file()  # A link to it was deleted, not what is in it.


def test_zip_archives_of_coco(tmp_path):
    fakes.write_coco(tmp_path / "raw", 2017)
    (tmp_path / "manual").mkdir()
    for part, name in (("train2017", "train2017"), ("val2017", "val2017"), ("annotations", "annotations_trainval2017")):
        (tmp_path / part).mkdir()
        (tmp_path / "raw" / part).rename(tmp_path / part / part)
        pack(tmp_path / part, tmp_path / "manual" / f"{name}.zip")
    assert "6 photos (train 4, val 2); 1 without" in prepare.prepare(
        "coco2017", str(tmp_path / "data"), str(tmp_path / "manual")
    )


def test_archives_are_downloaded_and_a_failed_download_leaves_nothing(voc_layout, tmp_path, monkeypatch, capsys):
    served = tmp_path / "served"
    served.mkdir()
    pack(voc_layout, served / "VOCtrainval_11-May-2012.tar")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        read, (archive,) = prepare.PHOTO_SETS["voc2012"]
        here = Archive(archive.file, address + archive.file, archive.marker)
        nowhere = Archive(archive.file, address + "none.tar", archive.marker)
        data = tmp_path / "data"
        monkeypatch.setitem(prepare.PHOTO_SETS, "voc2012", (read, (nowhere,)))
        assert run(("dataset", "voc2012"), ("data_dir", data)) == 1
        message = capsys.readouterr().err
        assert "none.tar cannot be downloaded" in message and "--manual_dir" in message
        assert [path.name for path in (data / "downloads/voc2012").iterdir()] == []
        monkeypatch.setitem(prepare.PHOTO_SETS, "voc2012", (read, (here,)))
        assert run(("dataset", "voc2012"), ("data_dir", data)) == 0
        assert [path.name for path in (data / "downloads/voc2012").iterdir()] == [archive.file]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_download_that_breaks_off(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "100"}

    monkeypatch.setattr(archives.urllib.request, "urlopen", lambda *_, **__: Response(b"only this"))
    with pytest.raises(UserError, match="broke off after 9 of 100 bytes"):
        archives.download([Archive("a.tar", "http://nowhere.invalid/a.tar", "a")], tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- Bad photos ------------------------------------------------------------------------------------------------------


def test_a_bad_photo_stops_and_nothing_loads_or_is_left_out_and_listed(voc_layout, tmp_path, capsys):
    data = tmp_path / "data"
    photos = voc_layout / "VOCdevkit/VOC2012/JPEGImages"
    (photos / "2012_000001.jpg").write_bytes(b"")
    (photos / "2012_000005.jpg").write_bytes((photos / "2012_000004.jpg").read_bytes()[:400])
    arguments = (("dataset", "voc2012"), ("data_dir", data), ("manual_dir", voc_layout))
    assert run(*arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("Error: ") and "2012_000001.jpg: the file is empty" in message and "--skip_bad" in message
    assert left_behind(data) == []
    with pytest.raises(UserError, match="not prepared"):
        VOC("voc2012", 32, 0, str(data)).source("train")
    assert run(*arguments, ("skip_bad", True)) == 0
    said = capsys.readouterr().out
    assert "5 photos (train 3, val 1, trainval 4, main_train 4)" in said and "2 bad photos were left out" in said
    assert "2012_000001" in said and "2012_000005" in said
    dataset = VOC("voc2012", 32, 0, str(data))
    assert [dataset.source("val")[0]["id"]] == ["2012_000004"] and len(dataset.source("train")) == 3


def test_every_photo_bad(voc_layout, tmp_path):
    for file in voc_layout.rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="no photo to write"):
        prepare.prepare("voc2012", str(tmp_path / "data"), str(voc_layout), skip_bad=True)
    assert left_behind(tmp_path / "data") == []


def test_interrupted_preparation_starts_again_cleanly(voc_layout, tmp_path, monkeypatch):
    data = tmp_path / "data"
    whole = prepare.PHOTO_SETS["voc2012"][0](voc_layout)
    seen = []

    def interrupted(name):
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return whole.read(name)

    with pytest.raises(KeyboardInterrupt):
        builders.write_photo_set(
            "voc2012", raw.RawSet(whole.class_names, whole.splits, interrupted, has_masks=True), str(data)
        )
    # A machine that loses power leaves more than that.
    for leftover in ("voc2012/incomplete.ABC123_1.0.0", "voc2012/1.0.0", "incomplete.voc2012/VOCdevkit"):
        (data / leftover).mkdir(parents=True)
        (data / leftover / "half").write_text("x")
    with pytest.raises(UserError, match="not prepared"):
        VOC("voc2012", 32, 0, str(data)).source("train")
    prepare.prepare("voc2012", str(data), str(voc_layout))
    assert left_behind(data) == [] and not list(data.rglob("half"))
    assert len(VOC("voc2012", 32, 0, str(data)).source("trainval")) == 6


def test_damaged_metadata_and_records_are_named(voc_layout, tmp_path):
    data = tmp_path / "data"
    prepare.prepare("voc2012", str(data), str(voc_layout))
    records = next(data.rglob("*.array_record*"))
    records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or missing.*--dataset=voc2012"):
        dataset = VOC("voc2012", 32, 0, str(data)).source("trainval")
        [dataset[index] for index in range(len(dataset))]
    next(data.rglob("metadata.json")).write_text('{"splits": ')
    with pytest.raises(UserError, match="metadata.json is damaged.*--dataset=voc2012"):
        VOC("voc2012", 32, 0, str(data)).source("train")


# ---- Archives --------------------------------------------------------------------------------------------------------


def tar_with(file, name, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(file, "w") as opened:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = 4 if kind == tarfile.REGTYPE else 0
        opened.addfile(member, io.BytesIO(b"evil") if member.size else None)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "a/../../outside.txt", "/tmp/outside.txt", "..\\outside.txt", "C:/o.txt"]
)
@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_archives_cannot_write_outside_of_their_folder(tmp_path, name, ending):
    file, target = tmp_path / f"archive.{ending}", tmp_path / "deep" / "target"
    if ending == "tar":
        tar_with(file, name)
    else:
        with zipfile.ZipFile(file, "w") as opened:
            opened.writestr(name, "evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="would write outside of its folder"):
        archives.unpack(file, target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_archives_are_refused(tmp_path, kind):
    tar_with(tmp_path / "a.tar", "link", kind, "../../outside")
    with pytest.raises(UserError, match="'link', which is no plain file"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "target")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        opened.writestr(member, "/outside")
    with pytest.raises(UserError, match="'link', which is no plain file"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "target")


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_archives_that_are_cut_off(tmp_path, ending):
    (tmp_path / "content").mkdir()
    (tmp_path / "content/a.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    file = tmp_path / f"a.{ending}"
    pack(tmp_path / "content", file)
    archives.unpack(file, tmp_path / "whole")
    assert (tmp_path / "whole/a.bin").read_bytes() == (tmp_path / "content/a.bin").read_bytes()
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(UserError, match="cut off"):
        archives.unpack(file, tmp_path / "target")
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="no zip or tar archive"):
        archives.unpack(file, tmp_path / "target")


def test_wrong_and_missing_archives_are_named(voc_layout, tmp_path, capsys):
    manual, data = tmp_path / "manual", tmp_path / "data"
    manual.mkdir()
    arguments = (("dataset", "voc2012"), ("data_dir", data), ("manual_dir", manual))
    assert run(*arguments) == 1
    assert "lacks VOCtrainval_11-May-2012.tar (from http" in capsys.readouterr().err
    (voc_layout / "VOCdevkit/VOC2012").rename(voc_layout / "VOCdevkit/VOC2010")
    pack(voc_layout, manual / "VOCtrainval_11-May-2012.tar")
    assert run(*arguments) == 1
    assert "does not hold VOCdevkit/VOC2012: it is another archive" in capsys.readouterr().err
    assert left_behind(data) == []
    assert run(*arguments[:2], ("manual_dir", tmp_path / "nowhere")) == 1
    assert "nowhere' is no folder" in capsys.readouterr().err


def test_half_unpacked_distributions_are_refused(tmp_path, capsys):
    fakes.write_voc(tmp_path / "manual", 2007)
    (tmp_path / "manual/VOCdevkit/VOC2007/ImageSets/Segmentation/test.txt").unlink()
    pack(tmp_path / "manual", tmp_path / "trainval.tar")
    lists = tmp_path / "test/VOCdevkit/VOC2007/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("2007_000005\n")
    pack(tmp_path / "test", tmp_path / "manual/VOCtest_06-Nov-2007.tar")
    assert run(("dataset", "voc2007"), ("data_dir", tmp_path / "data"), ("manual_dir", tmp_path / "manual")) == 1
    assert "Unpack all of them or none" in capsys.readouterr().err


@pytest.mark.slow
def test_real_layouts_are_prepared(shared_data, tmp_path):
    if not (shared_data / "raw").is_dir():
        pytest.skip(f"no original layouts in {shared_data}")
    expected = {
        "voc2012": "1331 photos (train 437, val 345, trainval 782, train_aug 986",
        "coco2017": "510 photos (train 260, val 250); 3 without any object",
        "cub200": "1000 photos (train 600, test 400); 0 without any object",
    }
    for name, text in expected.items():
        assert text in prepare.prepare(name, str(tmp_path), str(shared_data / "raw"))
