"""Weights from anybody: nothing in them is run, and each file is used or is one clear error."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import Evil
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tl.errors import UserError
from tl.models import weight_files, weights, zoo
from tl.models.network import Network


def zipped(name: str, *others: str) -> Callable[[bytes], bytes]:
    """What torch.save writes, made by hand."""

    def make(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
            archive.writestr("archive/version", "3\n")
            for other in others:
                archive.writestr(other, content)
        return file.getvalue()

    return make


def in_tar(content: bytes) -> bytes:
    """As torch 0.1 saved it, with a file that would leave the folder it is unpacked in."""
    file = io.BytesIO()
    zero = pickle.dumps(0)
    members = {"sys_info": pickle.dumps({}), "pickle": content, "storages": zero, "tensors": zero}
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, member in {**members, "../../escaped": content, "/tmp/escaped": content}.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return file.getvalue()


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "zip": zipped("archive/data.pkl"),
    "zip that leaves its folder": zipped("../../archive/data.pkl", "archive/data.pkl"),
    "TorchScript": zipped("archive/data.pkl", "archive/constants.pkl", "archive/code/x.py"),
    "tar": in_tar,
    "legacy": lambda content: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + content,
}


@pytest.fixture(scope="module")
def network() -> Network:
    return zoo.build("squeezenet1_1", 2)


@pytest.mark.parametrize(
    "ending", ["pth", "pt", "tar", "ckpt", "bin", "safetensors", "SafeTensors"]
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_pickle_is_not_run_whatever_it_is_wrapped_in_and_called(
    tmp_path: Path, container: str, ending: str, network: Network
) -> None:
    path = tmp_path / f"weights.{ending}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for content in (Evil(tmp_path / "ran"), {"state_dict": {"a": Evil(tmp_path / "ran")}}):
            path.write_bytes(CONTAINERS[container](pickle.dumps(content, protocol)))
            with pytest.raises(UserError, match=str(path)):
                weights.load(network, str(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/escaped").exists()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_weights_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / data.draw(
        st.sampled_from(["a.pth", "a.safetensors"])
    )
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    try:
        read = weight_files.read(path)
    except UserError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in read.values())


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def floats(shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", length=2**63),
        safetensors(b"{}", length=10**12),
        safetensors(b"", length=0),
        safetensors(b"[" * 50_000),
        safetensors(b'{"\xff": 1}'),
        safetensors({"a": floats([2], 0, 8), "b": floats([2], 4, 12)}, bytes(12)),
        safetensors({"a": floats([2], 0, 8), "b": floats([2], 0, 8)}, bytes(8)),
        safetensors({"a": floats([2], 8, 16)}, bytes(16)),
        safetensors({"a": floats([2], 0, 8)}, bytes(16)),
        safetensors({"a": floats([2**40], 0, 2**42)}, bytes(16)),
        safetensors({"a": floats([2**33, 2**33], 0, 16)}, bytes(16)),
        safetensors({"a": floats([2**63, 0], 0, 0)}),
        safetensors({"a": floats([-2], 0, 8)}, bytes(8)),
        safetensors({"a": {**floats([2], 0, 8), "dtype": "X32"}}, bytes(8)),
        safetensors({"a": {**floats([2], 0, 16), "dtype": "C64"}}, bytes(16)),
        safetensors({"a": {**floats([2], 0, 2), "dtype": "F8_E4M3"}}, bytes(2)),
        safetensors({"../../../tmp/a\x1b[2J": floats([1], 0, 4)}, bytes(4)),
        safetensors({f"{i}" + "a" * 5000: floats([0], 0, 0) for i in range(100)}),
    ],
)
def test_absurd_safetensors_are_refused(tmp_path: Path, network: Network, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        weights.load(network, str(path))
    assert len(str(caught.value)) < 3000
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def odd_tensors(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "complex": tensor.to(torch.complex64),
        "quantized": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "8 bits": tensor.to(torch.float8_e4m3fn),
        "expanded": torch.zeros(1).expand(10**6, 10**6),
    }


@pytest.mark.filterwarnings("ignore")  # torch's, about kinds of tensors it will give up
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, network: Network) -> None:
    state = {name: value.clone() for name, value in network.model.state_dict().items()}
    name = next(iter(state))
    for kind, tensor in odd_tensors(state[name]).items():
        torch.save({**state, name: tensor}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=name):
            weights.load(network, str(tmp_path / "weights.pth"))
        assert torch.equal(network.model.state_dict()[name], state[name]), kind
