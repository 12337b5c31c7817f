"""What is in a folder of photos: one folder per class, or an index file; which photo belongs to which split."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Sequence

from selfexplain_jax.types import UserError

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""Name of a folder, or of a split in an index file -> split."""
INDEX_FILES = ("index.csv", "index.jsonl")
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
SEPARATOR = ";"
"""Between the labels of one photo in a CSV file."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One photo. path and mask are relative to the folder; split "" = by lot; mask "" = none is named."""

    path: str
    labels: tuple[str, ...]
    split: str = ""
    mask: str = ""


def read_layout(folder: pathlib.Path, index: str = "", leave_out: str = "") -> list[Entry]:
    """Lists the photos of a folder.

    Args:
      folder: with an index file, or with one folder per class, or with the folders train, validation (or val) and test
        that hold one folder per class each.
      index: name of the index file in it; empty: index.csv or index.jsonl where it is there.
      leave_out: a folder in it that holds no class (the masks).

    Raises:
      UserError: nothing is found, a class folder is empty, or the index is damaged; the message names file and line.
    """
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} is no folder (config.data.data_dir, or --data_dir, names the one with photos)."
        )
    found = [name for name in INDEX_FILES if (folder / name).is_file()]
    if len(found) > 1 and not index:
        raise UserError(
            f"{folder} holds {' and '.join(found)}. Delete one, or name the one to use: index={found[0]!r}."
        )
    if index or found:
        return read_index(folder, index or found[0])
    top = _folders(folder, leave_out)
    splits = [path for path in top if path.name.lower() in SPLIT_FOLDERS]
    if not any(path.name.lower() == "train" for path in splits):
        return list(_class_folders(folder, top, ""))
    others = [path.name for path in top if path not in splits]
    if others:
        raise UserError(
            f"{folder} holds train/ beside {others[0]}/: it is unclear which are splits and which are classes. Use an "
            "index file, or put all classes below train/, validation/ and test/."
        )
    entries = []
    for path in splits:
        entries += _class_folders(folder, _folders(path, ""), SPLIT_FOLDERS[path.name.lower()])
    known = {entry.labels for entry in entries if entry.split == "train"}
    unknown = [entry for entry in entries if entry.labels not in known]
    if unknown:
        raise UserError(
            f"{folder}: {unknown[0].path} is of class {unknown[0].labels[0]!r}, which train/ does not have."
        )
    return entries


def _folders(folder: pathlib.Path, leave_out: str) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != leave_out
    )


def _class_folders(root: pathlib.Path, folders: Sequence[pathlib.Path], split: str) -> Iterator[Entry]:
    if not folders:
        raise UserError(
            f"There are no photos to learn from in {root}: it needs one folder of photos per class, or an index file "
            f"({' or '.join(INDEX_FILES)})."
        )
    for folder in folders:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file.relative_to(root))]
        if not files:
            raise UserError(f"The class folder {folder} is empty. Fill it or delete it.")
        for file in files:
            yield Entry(file.relative_to(root).as_posix(), (folder.name,), split)


def _hidden(path: pathlib.Path) -> bool:
    return path.name.lower() in SYSTEM_FILES or any(part.startswith(".") for part in path.parts)


def read_index(folder: pathlib.Path, name: str) -> list[Entry]:
    """Reads an index file: one photo per row with `file`, `labels`, and, as you like, `split` and `mask`.

    CSV: the first line names the columns; several labels are separated by ";". JSON Lines: one object per line; labels
    are a list, or one string. Paths are relative to the folder.

    Raises:
      UserError: the file is missing or cut off, a row lacks a field, names a split that does not exist or a file that
        is not there, or names a photo twice; the message names the line.
    """
    file = folder / name
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The index {file} cannot be read as UTF-8 text ({error}).") from error
    entries, lines = [], {}
    for line, row in _json_rows(file, text) if file.suffix.lower() in (".jsonl", ".json") else _csv_rows(file, text):
        entry = _entry(folder, f"{file}, line {line}", row)
        if entry.path in lines:
            raise UserError(f"{file}: {entry.path!r} is there twice, in lines {lines[entry.path]} and {line}.")
        lines[entry.path] = line
        entries.append(entry)
    if not entries:
        raise UserError(f"The index {file} names no photo.")
    return entries


def _csv_rows(file: pathlib.Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [column for column in ("file", "labels") if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{file}: the first line must name the columns file and labels; {missing[0]!r} is missing.")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{file}, line {reader.line_num}: it has not the {len(reader.fieldnames)} fields that the "
                    "first line names; is the file cut off?"
                )
            labels = [label.strip() for label in row["labels"].split(SEPARATOR) if label.strip()]
            yield reader.line_num, {**row, "labels": labels}
    except csv.Error as error:
        raise UserError(f"{file}, near line {reader.line_num}: damaged or cut off ({error}).") from error


def _json_rows(file: pathlib.Path, text: str) -> Iterator[tuple[int, dict]]:
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {line}: damaged or cut off ({error}).") from error
        if not isinstance(row, dict) or "file" not in row or "labels" not in row:
            raise UserError(f'{file}, line {line}: expected {{"file": ..., "labels": [...]}}.')
        labels = [row["labels"]] if isinstance(row["labels"], str) else row["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise UserError(f"{file}, line {line}: labels must be a list of names, not {row['labels']!r}.")
        yield line, {**row, "labels": labels}


def _entry(folder: pathlib.Path, where: str, row: dict) -> Entry:
    path, split, mask = (str(row.get(field) or "").strip() for field in ("file", "split", "mask"))
    for field, value in (("file", path), ("mask", mask)):
        if (value or field == "file") and not (folder / value).is_file():
            raise UserError(f"{where}: there is no {field} {value!r} in {folder}.")
    if split and split.lower() not in SPLIT_FOLDERS:
        raise UserError(f"{where}: {split!r} is no split; there are {', '.join(SPLITS)}.")
    # Sorted, each once: the order in a row means nothing.
    labels = tuple(sorted(set(row["labels"])))
    return Entry(path, labels, SPLIT_FOLDERS.get(split.lower(), ""), mask)


def draw_splits(
    entries: Sequence[Entry], seed: int, validation_fraction: float, test_fraction: float
) -> dict[str, list[Entry]]:
    """Shares photos out over the splits: as they say themselves, else by lot.

    The lot of a photo is a hash of (seed, path), and each set of labels is shared out for itself, rounded to the
    nearest number of photos, but at least one in train. Another order of files or another machine changes nothing.

    Args:
      entries: of the whole folder.
      seed: another seed gives another division.
      validation_fraction: share of the photos without a split that goes to validation.
      test_fraction: share that goes to test.

    Returns:
      {split: entries}, in the order of `entries`.
    """
    by_lot: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        if not entry.split:
            by_lot.setdefault(entry.labels, []).append(entry)
    drawn: dict[str, str] = {}
    for group in by_lot.values():
        group.sort(key=lambda entry: hashlib.sha256(f"{seed}/{entry.path}".encode()).digest())
        test = min(round(test_fraction * len(group)), len(group) - 1)
        validation = min(round(validation_fraction * len(group)), len(group) - 1 - test)
        for position, entry in enumerate(group):
            late = "validation" if position < test + validation else "train"
            drawn[entry.path] = "test" if position < test else late
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        splits[entry.split or drawn[entry.path]].append(entry)
    return splits
