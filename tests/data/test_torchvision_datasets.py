"""torchvision's data sets: parts, labels, names of classes, and what is said without a network."""

import gzip
import multiprocessing
import pickle
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from hostile_files import Evil
from PIL import Image

from tl.config import DataConfig
from tl.data.images import BadImage
from tl.data.sources import open_source
from tl.data.torchvision_datasets import _classes, _parameters, _parts
from tl.errors import UserError


def opened(name: str, root: Path | None = None, **keys):
    data = DataConfig(source=f"torchvision:{name}", root=root and str(root), **keys)
    return open_source(data, 0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    for key in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    # urllib keeps the proxies of its first call, and would use these in other tests.
    monkeypatch.setattr(urllib.request, "_opener", None)


def write_mnist(root: Path, name: str = "MNIST", part_sizes=(20, 10)) -> Path:
    """Files in MNIST's own format; image i of a part is all i, its label i % 10."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in zip(("train", "t10k"), part_sizes, strict=True):
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28).tobytes()
        labels = bytes(i % 10 for i in range(count))
        for kind, dimensions, content in (
            ("images-idx3", (count, 28, 28), pixels),
            ("labels-idx1", (count,), labels),
        ):
            magic = struct.pack(">I", 0x0800 + len(dimensions))
            header = magic + b"".join(struct.pack(">I", size) for size in dimensions)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + content)
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + content)
    return root


def test_fake_data_is_generated_and_split():
    source = opened("FakeData")
    assert source.classes == tuple("0123456789")
    assert len(source.train) + len(source.val) == 200
    image = pickle.loads(pickle.dumps(source.train)).read(3)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert image.tobytes() == source.train.read(3).tobytes()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_a_data_set_with_a_flag_for_its_parts(tmp_path, name):
    source = opened(name, write_mnist(tmp_path, name))
    assert (len(source.train), len(source.val)) == (20, 10)
    assert source.classes == tuple(getattr(torchvision.datasets, name).classes)
    assert source.train.names[3] == f"{name}/train/000003"
    assert source.val.names[0] == f"{name}/val/000000"
    assert source.train.labels.tolist() == [i % 10 for i in range(20)]
    assert source.train.read(13).getpixel((5, 5)) == (13, 13, 13)


def test_a_data_set_without_parts_is_split(tmp_path):
    for name in ("AnnualCrop", "Forest"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
    source = opened("EuroSAT", tmp_path)
    assert source.classes == ("AnnualCrop", "Forest")
    assert np.bincount(source.val.labels).tolist() == [1, 1]


def test_a_broken_file_is_a_bad_image(tmp_path):
    test_a_data_set_without_parts_is_split(tmp_path)
    (tmp_path / "eurosat/2750/Forest/0.png").write_bytes(b"\x89PNG")
    source = opened("EuroSAT", tmp_path)
    split = next(s for s in (source.train, source.val) if "EuroSAT/000005" in s.names)
    with pytest.raises(BadImage, match="EuroSAT/000005"):
        split.read(list(split.names).index("EuroSAT/000005"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("CIFAR10", [{"train": True}, {"train": False}]),
        ("EMNIST", [{"train": True}, {"train": False}]),
        ("USPS", [{"train": True}, {"train": False}]),
        ("SVHN", [{"split": "train"}, {"split": "test"}]),
        ("Food101", [{"split": "train"}, {"split": "test"}]),
        ("DTD", [{"split": "train"}, {"split": "val"}]),
        ("OxfordIIITPet", [{"split": "trainval"}, {"split": "test"}]),
        ("ImageNet", [{"split": "train"}, {"split": "val"}]),
        ("EuroSAT", [{}]),
        ("Caltech101", [{}]),
    ],
)
def test_parts_are_told_from_the_signature(name, parts):
    assert _parts(name, _parameters(getattr(torchvision.datasets, name))) == parts


def test_classes_come_from_the_values_where_they_have_no_names():
    class Unnamed:
        pass

    names, labels = _classes(Unnamed(), [np.array([5, 30]), np.array([7, 5])])
    assert names == ["5", "7", "30"]
    assert [label.tolist() for label in labels] == [[0, 2], [1, 0]]


def test_equal_names_of_two_classes_are_told_apart():
    class ImageNet:
        classes = (("crane",), ("tench", "Tinca tinca"), ("crane",))

    names, _ = _classes(ImageNet(), [np.array([0, 1, 2])])
    assert names == ["crane (0)", "tench, Tinca tinca", "crane (2)"]


def mistake(name: str, root: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        opened(name, root)
    return str(caught.value)


def test_without_a_network_the_error_says_where_the_files_belong_and_how_to_get_them(tmp_path):
    message = mistake("SVHN", tmp_path)
    assert f"not complete in data.root {tmp_path} and cannot be downloaded" in message
    assert "SVHN(root='.', split='train', download=True)" in message
    assert "SVHN(root='.', split='test', download=True)" in message
    assert "split='balanced', download=True)" in mistake("EMNIST", tmp_path)


def test_what_torchvision_does_not_download_is_not_tried(tmp_path):
    assert "torchvision does not download it" in mistake("ImageNet", tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_other_mistakes(tmp_path):
    assert "needs data.root" in mistake("CIFAR10")
    assert "Did you mean 'CIFAR10'?" in mistake("CIFAR1O", tmp_path)
    assert "is not supported: it needs annFile" in mistake("CocoDetection", tmp_path)


def test_a_pickle_of_a_data_set_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(evil)
    assert "is not complete" in mistake("CIFAR10", tmp_path)
    # torchvision itself would unpickle this one, before it looks at anything else.
    (tmp_path / f"_cache_{''.join(c for c in str(tmp_path) if c.isalpha())}").write_bytes(evil)
    for name in ("LSUN", "LSUNClass"):
        assert "it reads a pickle, which can run code" in mistake(name, tmp_path)
    assert not (tmp_path / "ran").exists()


def _open_and_report(root: Path, results) -> None:
    results.put(len(opened("MNIST", root).train))


def test_processes_that_open_at_once_all_find_it(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    write_mnist(tmp_path)
    processes = [
        context.Process(target=_open_and_report, args=(tmp_path, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [20, 20, 20]
    for process in processes:
        process.join()
