"""Official archives: finding them, downloading them, and unpacking them where nothing can get out of the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import tqdm

from selfexplain_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file of a dataset's distribution.

    file:     its name.
    url:      where it is downloaded from.
    marker:   a path in it: where that is there already, the archive is not needed.
    required: False: the dataset can do without.
    """

    file: str
    url: str
    marker: str
    required: bool = True


@contextlib.contextmanager
def unpacked(archives: Sequence[Archive], manual_dir: pathlib.Path, scratch: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder with the unpacked layout: `manual_dir` itself, or `scratch`, which is deleted afterwards.

    Args:
      archives: what the dataset consists of.
      manual_dir: holds the archives, or what is in them, or some of both.
      scratch: where archives are unpacked; it needs as much room. What an interrupted call left there is deleted.

    Raises:
      UserError: a required archive is missing, or one is damaged, is another one than it should be, or would write
        outside of its folder.
    """
    if not manual_dir.is_dir():
        raise UserError(f"--manual_dir={str(manual_dir)!r} is no folder. Name the one that holds the dataset's files.")
    here = [archive for archive in archives if _holds(manual_dir, archive.marker)]
    packed = [archive for archive in archives if archive not in here and (manual_dir / archive.file).is_file()]
    missing = [archive for archive in archives if archive.required and archive not in here and archive not in packed]
    if missing:
        lines = "; ".join(f"{archive.file} (from {archive.url}) or, unpacked, {archive.marker}" for archive in missing)
        raise UserError(f"{str(manual_dir)!r} lacks {lines}.")
    shutil.rmtree(scratch, ignore_errors=True)
    if not packed:
        yield manual_dir
        return
    try:
        for archive in packed:
            unpack(manual_dir / archive.file, scratch)
            if not _holds(scratch, archive.marker):
                raise UserError(f"{manual_dir / archive.file} does not hold {archive.marker}: it is another archive.")
        for entry in manual_dir.iterdir():
            if entry.is_dir() and not (scratch / entry.name).exists():
                (scratch / entry.name).symlink_to(entry.resolve(), target_is_directory=True)
        for archive in here:
            if not _holds(scratch, archive.marker):
                raise UserError(
                    f"{str(manual_dir)!r} holds {archive.marker} unpacked beside {packed[0].file}, which is not. "
                    "Unpack all of them or none."
                )
        yield scratch
    finally:
        # Links in it are removed as links: what they point at stays.
        shutil.rmtree(scratch, ignore_errors=True)


def _holds(folder: pathlib.Path, marker: str) -> bool:
    """Whether the marker is there; the folder may also be the one in which, or of which, the distribution is made."""
    inner = pathlib.PurePosixPath(marker)
    places = [folder / inner, folder / "coco" / inner]
    if len(inner.parts) > 1:
        places.append(folder / pathlib.Path(*inner.parts[1:]))
    return any(place.exists() for place in places)


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks the files of a zip or tar archive (compressed or not) below `folder`.

    Every name is checked before anything is written for it, and only plain files and folders are made, so that nothing
    can be written outside of `folder`.

    Raises:
      UserError: the archive is damaged, cut off, or has a member that is a link or leads out of the folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for item in opened.infolist():
                    kind = stat.S_IFMT(item.external_attr >> 16)
                    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                    _write(
                        archive, folder, item.filename, plain, None if item.is_dir() else lambda i=item: opened.open(i)
                    )
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                for item in opened:
                    plain = item.isfile() or item.isdir()
                    _write(
                        archive,
                        folder,
                        item.name,
                        plain,
                        None if item.isdir() else lambda i=item: opened.extractfile(i),
                    )
        else:
            raise UserError(f"{archive} is no zip or tar archive, or it is cut off. Download it again.")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{archive} cannot be unpacked; it is damaged or cut off, or the disk is full ({error})."
        ) from error


def _write(archive: pathlib.Path, folder: pathlib.Path, name: str, plain: bool, open_member) -> None:
    inner = pathlib.PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts or "\\" in name or ":" in name:
        raise UserError(f"{archive} would write outside of its folder: {name!r}. Nothing of that was written.")
    if not plain:
        raise UserError(f"{archive} holds {name!r}, which is no plain file; it is refused.")
    target = folder / inner
    if open_member is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_member() as source, open(target, "wb") as written:
        shutil.copyfileobj(source, written, 1 << 20)


def download(archives: Sequence[Archive], folder: pathlib.Path) -> None:
    """Downloads the archives that `folder` lacks. A file has its name only once it is there in full.

    Raises:
      UserError: no network, the server refuses, or the connection breaks off; the message says what to fetch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        file, part = folder / archive.file, folder / f"{archive.file}.part"
        if file.is_file():
            continue
        try:
            with urllib.request.urlopen(archive.url, timeout=60) as response, open(part, "wb") as written:
                expected = int(response.headers.get("Content-Length") or 0)
                received = _copy(response, written, archive.file, expected)
            if expected and received != expected:
                raise OSError(f"the connection broke off after {received} of {expected} bytes")
        except (urllib.error.URLError, OSError) as error:
            part.unlink(missing_ok=True)
            raise UserError(
                f"{archive.url} cannot be downloaded ({error}). Get it by other means, put it in a folder, and name "
                "that with --manual_dir."
            ) from error
        os.replace(part, file)


def _copy(source: IO[bytes], target: IO[bytes], what: str, total: int) -> int:
    received = 0
    with tqdm.tqdm(total=total or None, desc=what, unit="B", unit_scale=True) as bar:
        while chunk := source.read(1 << 20):
            target.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    return received
