"""Your own photos: layouts, index files, splits by lot, masks, and everything that may be wrong with such a folder."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from selfexplain_jax.data import prepare
from selfexplain_jax.data.fakes import draw_photo, write_folder, write_jpeg, write_palette_mask
from selfexplain_jax.data.folder import Folder
from selfexplain_jax.data.folder_index import Entry, draw_splits, read_layout
from selfexplain_jax.types import VOID, UserError


@pytest.fixture
def photos(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def folder(path, **options):
    return Folder(32, 0, str(path), **options)


def ids(dataset, split="train"):
    source = dataset.source(split)
    return [source[index]["id"] for index in range(len(source))]


def write_index(path, rows, name="index.csv"):
    if name.endswith("csv"):
        text = "file,labels,split,mask\n" + "".join(",".join(row) + "\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / name).write_text(text)


# ---- Layouts ---------------------------------------------------------------------------------------------------------


def test_class_folders_are_shared_out_by_lot_and_completely(photos):
    shutil.rmtree(photos / "masks")
    dataset = folder(photos, test_fraction=0.25, validation_fraction=0.25)
    assert dataset.info.class_names == ("cat", "dog") and not dataset.info.multilabel and not dataset.info.has_masks
    parts = {split: ids(dataset, split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 4, "validation": 2, "test": 2}
    assert sorted(sum(parts.values(), [])) == sorted(f"{('cat', 'dog')[i % 2]}/{i}.jpg" for i in range(8))
    assert (
        folder(photos, test_fraction=0.25, validation_fraction=0.25).source("test").entries
        == dataset.source("test").entries
    )
    others = [folder(photos, test_fraction=0.25, split_seed=seed).source("test").entries for seed in range(8)]
    assert len({tuple(entries) for entries in others}) > 1


def test_a_new_photo_moves_few_others():
    entries = [Entry(f"a/{number}.jpg", ("a",)) for number in range(100)]
    before = draw_splits(entries, 0, 0.0, 0.2)
    after = draw_splits([*entries, Entry("a/new.jpg", ("a",))], 0, 0.0, 0.2)
    assert len(before["test"]) == len(after["test"]) == 20
    assert len(set(before["test"]) - set(after["test"])) <= 1
    assert draw_splits(entries[::-1], 0, 0.0, 0.2)["test"] == before["test"][::-1]


def test_train_is_never_empty():
    splits = draw_splits([Entry("a/0.jpg", ("a",))], 0, 0.5, 0.4)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [1, 0, 0]


def test_split_folders(tmp_path):
    for path in ("train/cat/1", "train/dog/2", "val/cat/3", "test/dog/deep/4"):
        write_jpeg(tmp_path / f"{path}.jpg", draw_photo(0)[0])
    dataset = folder(tmp_path)
    assert [ids(dataset, split) for split in ("train", "validation", "test")] == [
        ["train/cat/1.jpg", "train/dog/2.jpg"],
        ["val/cat/3.jpg"],
        ["test/dog/deep/4.jpg"],
    ]
    write_jpeg(tmp_path / "test/cow/5.jpg", draw_photo(0)[0])
    with pytest.raises(UserError, match="test/cow/5.jpg is of class 'cow', which train/ does not have"):
        folder(tmp_path)


def test_split_folders_beside_class_folders_are_ambiguous(tmp_path):
    for path in ("train/cat/1", "horse/2"):
        write_jpeg(tmp_path / f"{path}.jpg", draw_photo(0)[0])
    with pytest.raises(UserError, match="train/ beside horse/"):
        folder(tmp_path)


@pytest.mark.parametrize("name", ["index.csv", "index.jsonl", "other.csv"])
def test_index_with_several_labels_splits_and_masks(photos, name):
    shutil.copy(photos / "masks/cat/0.png", photos / "m.png")
    rows = [
        ("cat/0.jpg", "dog; cat", "train", "m.png"),
        ("cat/2.jpg", "cat", "val", ""),
        ("dog/1.jpg", "", "train", ""),
        ("dog/3.jpg", "bird", "test", ""),
    ]
    if name == "index.jsonl":
        rows = [
            {"file": file, "labels": [part.strip() for part in labels.split(";") if part], "split": split, "mask": mask}
            for file, labels, split, mask in rows
        ]
    write_index(photos, rows, name)
    options = {"index": name} if name == "other.csv" else {}
    dataset = folder(photos, multilabel=True, **options)
    assert dataset.info.class_names == ("bird", "cat", "dog") and dataset.info.multilabel and dataset.info.has_masks
    train = dataset.source("train")
    assert (len(train), train.num_empty, train.num_dropped) == (2, 1, 0)
    np.testing.assert_array_equal(train.labels(), [[0, 1, 1], [0, 0, 0]])
    assert set(np.unique(train[0]["mask"])) == {0, 1} and set(np.unique(train[1]["mask"])) == {VOID}
    assert ids(dataset, "validation") == ["cat/2.jpg"] and ids(dataset, "test") == ["dog/3.jpg"]
    dropped = folder(photos, multilabel=True, empty="drop", **options).source("train")
    assert (len(dropped), dropped.num_empty, dropped.num_dropped) == (1, 1, 1)
    some = folder(photos, multilabel=True, classes=("dog", "bird"), **options)
    np.testing.assert_array_equal(some.source("train").labels(), [[1, 0], [0, 0]])
    # The mask says bird, by its number 1.
    assert set(np.unique(some.source("train")[0]["mask"])) == {0, 2}


def test_one_label_as_a_string_in_json_lines(photos):
    write_index(photos, [{"file": "cat/0.jpg", "labels": "cat"}, {"file": "dog/1.jpg", "labels": "dog"}], "index.jsonl")
    assert folder(photos).source("train").labels().tolist() == [[1, 0], [0, 1]]


# ---- Masks -----------------------------------------------------------------------------------------------------------


def test_masks_beside_the_photos(photos):
    dataset = folder(photos, masks="masks", test_fraction=0.0, validation_fraction=0.0)
    source = dataset.source("train")
    masks = {source[index]["id"]: source[index]["mask"] for index in range(8)}
    for index, name in ((0, "cat/0.jpg"), (1, "dog/1.jpg")):
        np.testing.assert_array_equal(masks.pop(name), np.where(draw_photo(index)[1], index + 1, 0))
    assert all((mask == VOID).all() for mask in masks.values()) and len(masks) == 6


def test_black_and_white_masks(photos):
    for name, index in (("cat/0", 0), ("dog/1", 1)):
        Image.fromarray(draw_photo(index)[1]).convert("RGB").save(photos / "masks" / f"{name}.png")
    dataset = folder(photos, masks="masks", mask_values="object", test_fraction=0.0, validation_fraction=0.0)
    source = dataset.source("train")
    for index in range(8):
        if source[index]["id"] == "dog/1.jpg":
            np.testing.assert_array_equal(source[index]["mask"], np.where(draw_photo(1)[1], 2, 0))


def test_mask_of_a_photo_that_is_decoded_smaller(tmp_path):
    rows, columns = np.mgrid[:640, :800]
    inside = (rows < 320) & (columns < 400)
    photo = np.repeat((inside * np.uint8(200))[..., None], 3, axis=-1)
    for name in ("cat/1", "dog/2"):
        write_jpeg(tmp_path / f"{name}.jpg", photo)
        write_palette_mask(tmp_path / "masks" / f"{name}.png", inside.astype(np.uint8))
    example = folder(tmp_path, masks="masks").source("train")[0]
    assert example["image"].shape == (160, 200, 3)  # A quarter.
    expected = np.zeros((160, 200), np.uint8)
    expected[:80, :100] = 1
    np.testing.assert_array_equal(example["mask"], expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((5, 7), np.uint8), r"cat.0.png: the mask is 7 x 5 px, its photo 56 x 40"),
        (np.full((40, 56), 3, np.uint8), r"cat.0.png: the mask holds class 3; there are 2"),
    ],
)
def test_bad_masks_are_named(photos, mask, message):
    write_palette_mask(photos / "masks/cat/0.png", mask)
    dataset = folder(photos, masks="masks", test_fraction=0.0, validation_fraction=0.0)
    with pytest.raises(UserError, match=message):
        ids(dataset)
    with pytest.raises(UserError, match="mask_values='object'"):
        folder(photos, masks="masks", mask_values="object", multilabel=True)


# ---- Bad photos ------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(photos):
    shutil.rmtree(photos / "masks")
    content = (photos / "cat/0.jpg").read_bytes()
    (photos / "cat/0.jpg").write_bytes(content[: len(content) // 2])
    (photos / "dog/1.jpg").write_bytes(b"")
    return photos


def test_bad_photos_stop_the_reading_by_name(damaged):
    dataset = folder(damaged, test_fraction=0.0, validation_fraction=0.0)
    source = dataset.source("train")
    for index, name in ((0, "0.jpg"), (4, "1.jpg: the file is empty")):
        with pytest.raises(UserError, match=name) as error:
            source[index]
        assert "skip_bad=True" in str(error.value)


def test_bad_photos_are_left_out_when_asked_and_counted(damaged):
    dataset = folder(damaged, test_fraction=0.0, validation_fraction=0.0, skip_bad=True)
    source = dataset.source("train")
    assert len(source) == 6 and len(source.left_out) == 2
    assert "0.jpg" in source.left_out[0] and "1.jpg: the file is empty" in source.left_out[1]
    assert len(ids(dataset)) == 6


def test_prepare_checks_a_folder(damaged, capsys):
    assert prepare.main(["--dataset=folder", f"--data_dir={damaged}"]) == 1
    message = capsys.readouterr().err
    assert "2 of 8 photos" in message and "0.jpg" in message and "1.jpg: the file is empty" in message
    assert prepare.main(["--dataset=folder", f"--data_dir={damaged}", "--skip_bad"]) == 0
    assert "6 photos (train 6, validation 0, test 0), classes cat, dog. 2 bad photos" in capsys.readouterr().out


def test_prepare_checks_masks_and_says_when_photos_show_several_classes(photos, capsys):
    arguments = ["--dataset=folder", f"--data_dir={photos}", "--masks=masks"]
    assert prepare.main(arguments) == 0
    assert "8 photos" in capsys.readouterr().out
    write_palette_mask(photos / "masks/dog/1.png", np.zeros((3, 3), np.uint8))
    assert prepare.main(arguments) == 1
    assert "1.png: the mask is 3 x 3 px" in capsys.readouterr().err
    (photos / "index.csv").write_text("file,labels\ncat/0.jpg,cat;dog\n")
    assert prepare.main(arguments[:2]) == 0
    assert "multilabel=True" in capsys.readouterr().out


def test_masks_that_no_photo_has(photos):
    (photos / "masks/cat").rename(photos / "masks/cats")
    (photos / "masks/dog").rename(photos / "masks/dogs")
    with pytest.raises(UserError, match="The mask of cat/0.jpg would be .*masks/cat/0.png"):
        folder(photos, masks="masks")


def test_files_that_are_no_photos(photos):
    (photos / "cat" / "Thumbs.db").write_text("x")
    (photos / "cat" / ".hidden").write_text("x")
    assert len(folder(photos, masks="masks")._entries) == 8
    (photos / "cat" / "notes.heic").write_text("x")
    with pytest.raises(UserError, match="no photos by their ending, the first is cat/notes.heic"):
        folder(photos, masks="masks")
    left_out = (
        folder(photos, masks="masks", skip_bad=True, test_fraction=0, validation_fraction=0).source("train").left_out
    )
    assert len(left_out) == 1 and "notes.heic" in left_out[0]


# ---- Bad folders -----------------------------------------------------------------------------------------------------


def test_empty_class_folder_is_named(photos):
    (photos / "horse").mkdir()
    with pytest.raises(UserError, match="class folder .*horse is empty"):
        folder(photos, masks="masks")


def test_folders_with_nothing_to_learn(tmp_path):
    with pytest.raises(UserError, match="needs one folder of photos per class"):
        folder(tmp_path)
    write_jpeg(tmp_path / "cat/1.jpg", draw_photo(0)[0])
    with pytest.raises(UserError, match=r"has 1 classes \(cat\)"):
        folder(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs config.data.data_dir"):
        Folder(32)


def test_named_classes_need_no_folder_until_it_is_read():
    dataset = Folder(32, classes=("cat", "dog"))
    assert dataset.info.class_names == ("cat", "dog")
    with pytest.raises(UserError, match="needs config.data.data_dir"):
        dataset.source("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\ncat/0.jpg,cat\n", "first line must name the columns file and labels; 'labels' is missing"),
        ("", "'file' is missing"),
        ("file,labels\n", "names no photo"),
        ("file,labels,split\ncat/0.jpg,cat,train\ncat/2.jpg,c", "line 3: it has not the 3 fields"),
        ('file,labels\ncat/0.jpg,cat\ncat/2.jpg,"ca', "near line 2: damaged or cut off"),
        ("file,labels\ncat/0.jpg,cat\nnone.jpg,dog\n", "line 3: there is no file 'none.jpg'"),
        ("file,labels\n,dog\n", "line 2: there is no file ''"),
        ("file,labels,mask\ncat/0.jpg,cat,m.png\n", "line 2: there is no mask 'm.png'"),
        ("file,labels,split\ncat/0.jpg,cat,trian\n", "line 2: 'trian' is no split"),
        ("file,labels\ncat/0.jpg,cat\ndog/1.jpg,dog\ncat/0.jpg,dog\n", "'cat/0.jpg' is there twice, in lines 2 and 4"),
        ("file,labels\ncat/0.jpg,cat;dog\n", "cat/0.jpg has 2 labels.*multilabel=True"),
    ],
)
def test_damaged_csv_index_names_the_line(photos, text, message):
    (photos / "index.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        folder(photos)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "cat/0.jpg", "lab', "line 2: damaged or cut off"),
        ('{"file": "cat/0.jpg"}', r'line 2: expected \{"file"'),
        ("[1, 2]", "line 2: expected"),
        ('{"file": "cat/0.jpg", "labels": [1]}', "labels must be a list of names"),
    ],
)
def test_damaged_json_lines_name_the_line(photos, line, message):
    (photos / "index.jsonl").write_text('{"file": "dog/1.jpg", "labels": ["dog"]}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        folder(photos)


def test_two_index_files_or_an_unreadable_one(photos):
    for name in ("index.csv", "index.jsonl"):
        (photos / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="index.csv and index.jsonl"):
        read_layout(photos)
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        read_layout(photos, "index.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_layout(photos, "none.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"empty": "discard"}, "empty='discard'"),
        ({"mask_values": "colours"}, "mask_values='colours'"),
        ({"test_fraction": 0.7, "validation_fraction": 0.4}, "must leave some to train"),
        ({"test_fraction": -0.1}, "must leave some to train"),
        ({"classes": ("cat", "cat")}, "two classes or more, each once"),
        ({"classes": ("cat",)}, "two classes or more"),
    ],
)
def test_options_out_of_range(photos, options, message):
    with pytest.raises(UserError, match=message):
        folder(photos, masks="masks", **options)
    with pytest.raises(UserError, match="image_size=4 must be"):
        Folder(4, 0, str(photos))
