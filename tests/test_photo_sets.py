"""VOC, COCO and CUB: reading their official layouts, real and written here, whole and damaged."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from selfexplain_jax.data import coco, cub, fakes, voc
from selfexplain_jax.data.cub import CUB
from selfexplain_jax.data.fakes import draw_photo, run_lengths
from selfexplain_jax.data.voc import VOC
from selfexplain_jax.types import VOID, UserError

ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "person")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The layouts that `fakes` writes, once: {name: (folder, reader)}."""
    folder = tmp_path_factory.mktemp("layouts")
    fakes.write_voc(folder / "voc", 2012)
    fakes.write_coco(folder / "coco", 2017)
    fakes.write_cub(folder / "cub")
    return {
        "voc": (folder / "voc", lambda path: voc.read_voc(path, 2012)),
        "coco": (folder / "coco", lambda path: coco.read_coco(path, 2017)),
        "cub": (folder / "cub", cub.read_cub),
    }


@pytest.fixture
def layout(made, tmp_path):
    """Copies a layout, so that a test may damage it."""

    def copy(name):
        shutil.copytree(made[name][0], tmp_path / name)
        return tmp_path / name, made[name][1]

    return copy


def read_all(raw_set):
    names = dict.fromkeys(name for ids in raw_set.splits.values() for name in ids)  # Each once, in order.
    return {name: raw_set.read(name) for name in names}


# ---- What is read ----------------------------------------------------------------------------------------------------


def test_voc_by_hand(made):
    folder, read = made["voc"]
    raw_set = read(folder)
    assert {split: len(ids) for split, ids in raw_set.splits.items()} == {
        "train": 4, "val": 2, "trainval": 6, "main_train": 5,
    }  # fmt: skip
    photos = read_all(raw_set)
    first, second, empty, maskless = (photos[f"2012_00000{index}"] for index in (0, 1, 3, 6))
    dog, cat = voc.CLASSES.index("dog"), voc.CLASSES.index("cat")
    assert first.class_ids == [dog] and second.class_ids == [cat] and empty.class_ids == []
    assert set(np.unique(first.mask)) == {0, dog + 1, VOID}
    np.testing.assert_array_equal(first.mask == dog + 1, draw_photo(0)[1])
    # A disc of radius below 10 about row 20 and column 18: columns 9 to 27, of 56.
    np.testing.assert_allclose(first.corners, [[9 / 56, 11 / 40, 28 / 56, 30 / 40]], atol=1e-6)
    assert not first.box_ignored[0] and second.box_ignored[0] and empty.corners.shape == (0, 4)
    assert maskless.mask is None and maskless.class_ids == [dog]
    assert raw_set.notes == {"photos without a mask: all void, labels from the boxes": 1}


def test_voc_test_set_of_2007_is_read_and_that_of_2012_is_not(tmp_path):
    for year, expected in ((2007, True), (2012, False)):
        fakes.write_voc(tmp_path, year)
        root = tmp_path / f"VOCdevkit/VOC{year}/ImageSets/Segmentation"
        (root / "test.txt").write_text("2007_000005\n" if expected else "2012_999999\n")
        assert ("test" in voc.read_voc(tmp_path, year).splits) == expected


def test_coco_by_hand(made):
    folder, read = made["coco"]
    raw_set = read(folder)
    photos = read_all(raw_set)
    assert raw_set.splits["val"] == ["000000000005", "000000000006"] and len(photos) == 6
    first, inside = photos["000000000001"], draw_photo(0)[1]
    # person (crowd), cat (the box of the disc), dog (the disc, smaller and so on top).
    assert first.class_ids == [0, 15, 16]
    assert first.mask[20, 18] == 17 and first.mask[11, 9] == 16 and first.mask[0, 0] == VOID
    np.testing.assert_array_equal(first.mask == 17, inside)
    assert sorted(zip(first.box_class_ids.tolist(), first.box_ignored.tolist(), strict=True)) == [
        (0, True), (15, False), (16, False),
    ]  # fmt: skip
    empty = photos["000000000004"]
    assert empty.class_ids == [] and not empty.mask.any() and empty.corners.shape == (0, 4)


def test_coco_classes_are_the_eighty_in_order():
    assert len(set(coco.CLASSES)) == 80
    assert [coco.CLASSES[i] for i in (0, 11, 24, 39, 79)] == ["person", "stop sign", "backpack", "bottle", "toothbrush"]


def test_small_instances_lie_on_large_ones_and_on_crowds():
    large, small, crowd = np.zeros((3, 2, 4), bool)
    large[:, :3] = True
    small[0, 1] = True
    crowd[:, 2:] = True
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        instances = [[(large, 4, False), (small, 7, False), (crowd, 4, True)][i] for i in order]
        np.testing.assert_array_equal(coco.merge_instances(instances, 2, 4), [[5, 8, 5, VOID], [5, 5, 5, VOID]])


def test_run_lengths_and_polygons_draw_what_they_say():
    covered = np.zeros((3, 4), bool)
    covered[1:, 0] = covered[0, 2] = True
    assert run_lengths(covered) == {"size": [3, 4], "counts": [1, 2, 3, 1, 5]}
    for mask in (covered, ~covered):
        np.testing.assert_array_equal(coco.instance_mask({"segmentation": run_lengths(mask)}, 3, 4), mask)
    square = coco.instance_mask({"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}, 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(square, expected)
    # Fewer than three corners enclose nothing; four numbers are no box here.
    assert not coco.instance_mask({"segmentation": [[1, 1, 3, 3]]}, 5, 6).any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([[1, 1, 30, 1, 3, 3]], "reaches outside of the image of 6 x 5"),
        ([[1, -9, 3, 1, 3, 3]], "reaches outside"),
        ([[1, 1, 3, 1, 3, 3, 4]], "no list of pairs"),
        ([[1, 1, 3, 1, 3, float("nan")]], "no list of pairs"),
        ([["a", "b", "c", "d", "e", "f"]], "damaged"),
        ({"size": [6, 5], "counts": [30]}, "are for 5 x 6 px"),
        ({"size": [5, 6], "counts": [29]}, "add up to 29 of 30"),
        ({"counts": [30]}, "damaged"),
        (None, "damaged"),
    ],
)
def test_damaged_shapes_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        coco.instance_mask({"segmentation": shape}, 5, 6)


def test_cub_by_hand(made):
    folder, read = made["cub"]
    raw_set = read(folder)
    assert list(raw_set.class_names) == ["Red Bird", "Blue Bird"] and raw_set.has_masks
    assert raw_set.splits == {"train": ["1", "2", "3", "4"], "test": ["5", "6"]}
    second = raw_set.read("2")
    assert second.class_ids == [1]
    np.testing.assert_array_equal(second.mask, np.where(draw_photo(1)[1], 2, 0))
    photo, inside = draw_photo(1)
    rows, columns = np.nonzero(inside)
    box = (columns.min() / 52, rows.min() / 44, (columns.max() + 1) / 52, (rows.max() + 1) / 44)
    np.testing.assert_allclose(second.corners, [box], atol=1e-6)


def test_cub_without_segmentations_has_no_masks(tmp_path):
    fakes.write_cub(tmp_path, masks=False)
    raw_set = cub.read_cub(tmp_path / "CUB_200_2011")
    assert not raw_set.has_masks and raw_set.read("1").mask is None


def test_grey_and_cmyk_photos_are_stored_as_rgb(layout):
    folder, read = layout("voc")
    for index, mode in enumerate(("L", "CMYK")):
        file = folder / f"VOCdevkit/VOC2012/JPEGImages/2012_00000{index}.jpg"
        original = Image.open(io.BytesIO(file.read_bytes())).convert(mode)
        original.save(file, quality=95)
        pixels = Image.open(io.BytesIO(read(folder).read(f"2012_00000{index}").photo))
        assert pixels.mode == "RGB" and pixels.size == original.size
        difference = np.asarray(pixels).astype(int) - np.asarray(original.convert("RGB"))
        assert np.abs(difference).mean() < 6


# ---- What is refused -------------------------------------------------------------------------------------------------


def damage_photo(folder, name, content):
    file = next(folder.rglob(name))
    file.write_bytes(content(file.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("name", "photo", "key"),
    [
        ("voc", "2012_000002.jpg", "2012_000002"),
        ("coco", "000000000003.jpg", "000000000003"),
        ("cub", "bird_2.jpg", "3"),
    ],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [(lambda data: data[: len(data) // 2], ""), (lambda data: b"", "empty"), (lambda data: b"text", "no image")],
)
def test_bad_photos_are_named(layout, name, photo, key, content, message):
    folder, read = layout(name)
    damage_photo(folder, photo, content)
    with pytest.raises(UserError, match=f"{photo}: .*{message}"):
        read(folder).read(key)


@pytest.mark.parametrize("name", ["voc", "coco", "cub"])
def test_missing_photo_is_named(layout, name):
    folder, read = layout(name)
    raw_set = read(folder)
    file = sorted(folder.rglob("*.jpg"))[0]
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name}: cannot be read"):
        read_all(raw_set)


def test_voc_masks_of_another_size_or_with_an_unknown_class(layout):
    folder, read = layout("voc")
    masks = folder / "VOCdevkit/VOC2012/SegmentationClass"
    fakes.write_palette_mask(masks / "2012_000000.png", np.zeros((9, 8), np.uint8))
    fakes.write_palette_mask(masks / "2012_000001.png", np.full((44, 52), 21, np.uint8))
    Image.open(folder / "VOCdevkit/VOC2012/JPEGImages/2012_000002.jpg").save(masks / "2012_000002.png")
    for name, message in (("0", "mask is 8 x 9 px, its photo 56 x 40"), ("1", "holds class 21"), ("2", "mode RGB")):
        with pytest.raises(UserError, match=f"2012_00000{name}.png: .*{message}"):
            read(folder).read(f"2012_00000{name}")


def test_voc_annotations_that_are_cut_off_or_name_no_class(layout):
    folder, read = layout("voc")
    file = folder / "VOCdevkit/VOC2012/Annotations/2012_000000.xml"
    text = file.read_text()
    for content, message in (
        (text[:60], "cut off or damaged"),
        (text.replace("dog", "dragon"), "'dragon' is no class of VOC"),
        (text.replace("<xmin>10</xmin>", ""), "cut off or damaged"),
        (text.replace("<xmin>10</xmin>", "<xmin>left</xmin>"), "cut off or damaged"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=f"2012_000000.xml: .*{message}"):
            read(folder).read("2012_000000")


def test_ids_that_are_there_twice_are_named(layout):
    folder, read = layout("voc")
    with open(folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "a") as file:
        file.write("2012_000004\n")
    with pytest.raises(UserError, match="val.txt: 1 ids are there more than once: 2012_000004"):
        read(folder)
    folder, read = layout("cub")
    with open(folder / "CUB_200_2011/images.txt", "a") as file:
        file.write("3 001.Red_Bird/bird_9.jpg\n")
    with pytest.raises(UserError, match="images.txt: 1 ids are there more than once: 3"):
        read(folder)


def edit_json(folder, change):
    file = folder / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "more than once: 5"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "more than once"),
        (lambda c: c["images"].append({**c["images"][0], "id": 77}), "more than once: 000000000005.jpg"),
        (lambda c: c["images"][0].update(file_name="000000000001.jpg"), "in the other split too.*000000000001"),
        (lambda c: c["annotations"][0].update(image_id=99), "names an image or a category that is not there"),
        (lambda c: c["categories"][0].update(name="dragon"), "'dragon' is no category of COCO"),
        (lambda c: c.pop("categories"), "is no annotation file of COCO: KeyError 'categories'"),
    ],
)
def test_coco_annotation_files_that_do_not_hold_together(layout, change, message):
    folder, read = layout("coco")
    edit_json(folder, change)
    with pytest.raises(UserError, match=f"instances_val2017.json: .*{message}"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 900, 1, 9, 9]]), "annotation 57: .*reaches outside"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 57: 'bbox'"),
        (lambda c: c["images"][0].update(width=7), "photo is 56 x 44 px, its annotations are for 7 x 44"),
    ],
)
def test_coco_annotations_that_do_not_fit_the_photo(layout, change, message):
    folder, read = layout("coco")
    edit_json(folder, change)
    with pytest.raises(UserError, match=f"000000000005.jpg: .*{message}"):
        read(folder).read("000000000005")


def test_coco_annotation_file_that_is_cut_off(layout):
    folder, read = layout("coco")
    file = damage_photo(folder, "instances_val2017.json", lambda data: data[:-30])
    with pytest.raises(UserError, match=f"{file.name}: the annotation file is cut off"):
        read(folder)
    file.unlink()
    assert list(read(folder).splits) == ["train"]
    shutil.rmtree(folder / "train2017")
    with pytest.raises(UserError, match="but not the folder .*train2017"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("image_class_labels", "2 2\n", "", "1 photos are missing, the first is '2'"),
        ("image_class_labels", "2 2\n", "2 9\n", "photo '2' has class 9 of 2"),
        ("image_class_labels", "2 2\n", "2\n", "line 2: expected an id and 1 values"),
        ("image_class_labels", "2 2\n", "2 x\n", "is no number"),
        ("images", "002.Blue_Bird/bird_1.jpg", "../../bird_1.jpg", "leads out of the folder"),
        ("classes", "2 002", "7 002", "not numbered 1 to 2"),
    ],
)
def test_damaged_cub_tables(layout, file, old, new, message):
    folder, read = layout("cub")
    path = folder / f"CUB_200_2011/{file}.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_all(read(folder))


def test_cub_mask_that_is_missing(layout):
    folder, read = layout("cub")
    next(folder.rglob("bird_1.png")).unlink()
    with pytest.raises(UserError, match="bird_1.png: cannot be read"):
        read(folder).read("2")


@pytest.mark.parametrize("name", ["voc", "coco", "cub"])
def test_folder_without_the_layout(made, tmp_path, name):
    with pytest.raises(UserError, match="There is no"):
        made[name][1](tmp_path)


# ---- Some of the classes ---------------------------------------------------------------------------------------------


def test_photos_without_the_classes_are_kept_or_dropped_and_counted(tmp_path):
    made = fakes.FAKES["voc2012"](tmp_path)
    for empty, length, dropped in (("keep", 4, 0), ("drop", 1, 3)):
        source = VOC("voc2012", 32, 0, made.data_dir, classes=("cow", "cat"), empty=empty).source("train")
        # Photos 1 (cat), 0 and 2 (dog), 3 (nothing); photo 1 alone, as 3 shows nothing.
        assert (len(source), source.num_empty, source.num_dropped) == (length, 3, dropped)
        assert source.labels().sum(axis=0).tolist() == [0, 1]
    whole = VOC("voc2012", 32, 0, made.data_dir).source("train")
    assert (whole.num_empty, whole.num_dropped) == (1, 0)
    maskless = VOC("voc2012", 32, 0, made.data_dir).source("main_train")[4]
    assert (maskless["mask"] == VOID).all() and maskless["label"].sum() == 1


def test_cub_takes_its_classes_from_what_was_prepared(tmp_path):
    assert CUB(32, 0, str(tmp_path)).info.num_classes == 200
    made = fakes.FAKES["cub200"](tmp_path)
    info = CUB(32, 0, made.data_dir).info
    assert info.class_names == ("Red Bird", "Blue Bird") and info.has_masks


# ---- Real files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared_data):
    folder = shared_data / "raw"
    if not folder.is_dir():
        pytest.skip(f"no original layouts in {folder}")
    return folder


def test_real_voc_lists_and_validation_labels(real):
    raw_set = voc.read_voc(real, 2012)
    sizes = {split: len(raw_set.splits[split]) for split in ("train", "val", "trainval", "train_aug")}
    assert sizes == {"train": 437, "val": 345, "trainval": 782, "train_aug": 986}
    chosen = raw_set.splits["val"][::9]
    photos = [raw_set.read(name) for name in chosen]
    assert all(VOID in photo.mask for photo in photos)
    for name, photo in zip(chosen, photos, strict=True):
        with Image.open(real / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png") as mask:
            assert photo.class_ids == [value - 1 for value in np.unique(np.asarray(mask)) if 0 < value < VOID]
    assert all(set(photo.class_ids) & {voc.CLASSES.index(name) for name in ANIMALS} for photo in photos)


@pytest.mark.slow
def test_all_of_real_voc_has_the_known_counts(real):
    raw_set = voc.read_voc(real, 2012)
    photos = read_all(raw_set)
    expected = {"train": (131, 121, 68, 62, 63, 79), "val": (99, 93, 63, 55, 43, 69)}
    for split, counts in expected.items():
        shown = [photos[name].class_ids for name in raw_set.splits[split]]
        assert tuple(sum(voc.CLASSES.index(name) in ids for ids in shown) for name in ANIMALS) == counts
    assert raw_set.notes == {"photos whose boxes name other classes than their mask: the mask counts": 31 + 17 + 2}


def test_real_coco_counts_and_run_lengths(real):
    raw_set = coco.read_coco(real, 2017)
    assert {split: len(ids) for split, ids in raw_set.splits.items()} == {"train": 260, "val": 250}
    file = real / "coco/annotations/instances_val2017.json"
    found = coco.read_annotations(file, real / "coco/val2017")
    assert sum(len(annotations) for _, _, annotations in found.values()) == 2204
    assert sum(not annotations for _, _, annotations in found.values()) == 1
    checked = 0
    for _, image, annotations in found.values():
        for annotation in annotations:
            shape = annotation["segmentation"]
            if isinstance(shape, dict) and checked < 200:
                height, width = shape["size"]
                runs = np.repeat(np.arange(len(shape["counts"])) % 2, shape["counts"]).reshape(width, height).T
                np.testing.assert_array_equal(coco.instance_mask(annotation, height, width), runs.astype(bool))
                checked += 1
            elif not isinstance(shape, dict) and checked < 200:
                area = coco.instance_mask(annotation, image["height"], image["width"]).sum()
                # The areas in the file are the polygons', these are the pixels'.
                assert abs(area - annotation["area"]) < 60 + 0.2 * annotation["area"]
    assert checked > 50
    photos = [raw_set.read(name) for name in raw_set.splits["val"][::12]]
    for photo in photos:
        assert set(np.unique(photo.mask)) - {0, VOID} <= {class_id + 1 for class_id in photo.class_ids}


def test_real_cub_counts(real):
    raw_set = cub.read_cub(real)
    assert len(raw_set.class_names) == 50 and raw_set.class_names[0] == "Black footed Albatross"
    assert {split: len(ids) for split, ids in raw_set.splits.items()} == {"train": 600, "test": 400}
    labels = [raw_set.read(name).class_ids[0] for name in raw_set.splits["test"][:40]]
    assert labels == sorted(labels) and np.bincount(labels).tolist() == [8] * 5


def test_real_cifar10_and_imagenet(shared_data):
    from selfexplain_jax.data.tfds_images import CIFAR10, ImageNet2012

    folder = shared_data / "tfds"
    if not (folder / "imagenet2012").is_dir() or not (folder / "cifar10").is_dir():
        pytest.skip(f"no prepared CIFAR-10 and ImageNet in {folder}")
    source = CIFAR10(32, 0, str(folder)).source("test")
    assert source[0]["image"].shape == (32, 32, 3)
    np.testing.assert_array_equal(source.labels().sum(axis=0), 900)
    some = CIFAR10(32, 0, str(folder), classes=("dog", "cat")).source("test")
    assert len(some) == 1800 and some.labels()[:, 0].sum() == 900
    photos = ImageNet2012(224, 0, str(folder)).source("train")
    assert len(photos) == 1000 and len(ImageNet2012(224, 0, str(folder)).source("validation")) == 10
    for index in (0, 500, 999):
        example = photos[index]
        name = ImageNet2012(224).info.class_names[int(example["label"].argmax())]
        assert example["id"] == f"{name}_sample.JPEG" and min(example["image"].shape[:2]) <= 256
    np.testing.assert_array_equal(photos.labels().sum(axis=0), 1)
