"""The index of a folder: it is as good as listing, and never used when it may be wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl.config import DataConfig
from tl.data import tree_index
from tl.data.folder import labelled
from tl.data.names import Names
from tl.data.sources import open_source
from tl.data.split import Source
from tl.engine.prepare import identity
from tl.errors import UserError


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (len(name), 0, 0)).save(path, "PNG")
    return root


def a_folder(root: Path) -> Path:
    """With all that is noted: other endings, images in no class, a folder called like one, links,
    a name that is no UTF-8."""
    parts = [f"{p}/{c}/{i}.png" for p in ("train", "val") for c in ("ants", "bees") for i in "1234"]
    put(root, *parts, "train/stray.png", "train/ants/deep/ü.png", "train/ants/x.png/5.png")
    (root / "train/ants/notes.txt").touch()
    (root / "train/ants/nowhere.png").symlink_to("nothing")
    (root / "train/ants/up").symlink_to("..")
    (root / "train/bees" / os.fsdecode(b"\xff.png")).symlink_to("1.png")
    return root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed; pathlib's too, as that of the indexes."""
    seen: list[str] = []
    scandir = os.scandir

    def noted(path: str) -> object:
        seen.append(str(path))
        return scandir(path)

    monkeypatch.setattr("tl.data.image_tree.os.scandir", noted)
    return seen


def of(seen: list[str], root: Path) -> list[str]:
    return [path for path in seen if Path(path) == root or root in Path(path).parents]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders need not be left alone for seconds before they are listed."""
    monkeypatch.setattr(tree_index, "SETTLED", -1.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "data")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


def opened(root: Path, place: Path | None, **keys: object) -> Source:
    return open_source(DataConfig(source="folder", root=str(root), **keys), 0, place)


def same(one: Source, other: Source) -> bool:
    for a, b in ((one.train, other.train), (one.val, other.val)):
        assert list(a.names) == list(b.names)
        assert a.labels.tolist() == b.labels.tolist()
        for i in range(len(a)):
            if "nowhere" not in a.names[i]:
                assert np.array_equal(np.asarray(a.read(i)), np.asarray(b.read(i)))
    assert identity(one) == identity(other)
    return (one.classes, one.notes, one.name) == (other.classes, other.notes, other.name)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("keys", [{}, {"classes": ["bees", "ants"]}, {"max_train": 5}])
def test_a_source_from_the_index_is_the_one_that_was_listed(root, place, scans, keys):
    listed = opened(root, None, **keys)
    first = opened(root, place, **keys)
    before = len(of(scans, root))
    again = opened(root, place, **keys)
    assert before
    assert len(of(scans, root)) == before
    assert same(listed, first)
    assert same(listed, again)


@pytest.mark.usefixtures("settled")
def test_a_split_from_the_index_is_held_out_alike(tmp_path, place, scans):
    root = put(tmp_path / "flat", *(f"{c}/{i}.png" for c in ("ants", "bees") for i in range(10)))
    listed, _ = opened(root, None), opened(root, place)
    before = len(of(scans, root))
    assert same(listed, opened(root, place))
    assert same(opened(root, place, val_fraction=0.4), opened(root, place, val_fraction=0.4))
    assert len(of(scans, root)) == before


@pytest.mark.usefixtures("settled")
def test_an_evaluation_finds_the_index_of_a_run(root, place, scans):
    opened(root, place)
    before = len(of(scans, root))
    split, notes = labelled(root, ["ants", "bees"], DataConfig(), place)
    assert len(of(scans, root)) - before <= 1  # images beside the classes of val/ are known too
    assert list(split.names) == list(labelled(root, ["ants", "bees"], DataConfig())[0].names)
    assert notes == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new image": lambda root: put(root, "train/ants/deep/new.png"),
    "an image less": lambda root: (root / "val/bees/1.png").unlink(),
    "another name": lambda root: (root / "val/bees/1.png").rename(root / "val/bees/9.png"),
    "a new class": lambda root: put(root, "train/wasps/1.png"),
    "a new folder": lambda root: put(root, "test/1.png"),
    "a class that was moved": lambda root: (
        (root / "train/bees").rename(root / "train/beez")
        and (root / "val/bees").rename(root / "val/beez")
    ),
    "a link that leads somewhere": lambda root: put(root, "train/ants/nothing/7.png"),
    "another folder in its place": lambda root: (
        root.rename(root.with_name("old")) and a_folder(root)
    ),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_folder_is_listed_again(root, place, scans, change):
    opened(root, place)
    before = len(scans)
    CHANGES[change](root)
    changed = opened(root, place)
    assert of(scans[before:], root)
    assert same(changed, opened(root, None))


@pytest.mark.usefixtures("settled")
def test_a_link_to_nowhere_is_looked_at_again(tmp_path, place):
    root = put(tmp_path / "data", *(f"train/{c}/{i}.png" for c in "ab" for i in range(4)))
    elsewhere = tmp_path / "elsewhere"
    (root / "train" / "c").symlink_to(elsewhere)
    assert opened(root, place).classes == ("a", "b")
    put(elsewhere, *(f"{i}.png" for i in range(4)))  # as when a disk is mounted
    assert opened(root, place).classes == ("a", "b", "c")


@pytest.mark.usefixtures("settled")
def test_other_endings_are_another_index(root, place):
    opened(root, place)
    assert "notes.txt" in " ".join(opened(root, place, extensions=["png", "txt"]).train.names)


def test_a_folder_that_was_changed_just_now_has_no_index(root, place):
    opened(root, place)
    assert not place.exists()


def test_a_folder_that_was_left_alone_has_one(root, place, scans):
    time.sleep(tree_index.SETTLED + 0.1)
    opened(root, place)
    before = len(of(scans, root))
    opened(root, place)
    assert len(of(scans, root)) == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in its head": lambda data: data[:40],
    "cut in its header": lambda data: data[:80],
    "cut at its end": lambda data: data[:-3],
    "a letter changed": lambda data: data.replace(b"bees/1", b"bees/7"),
    "longer": lambda data: data + b"more",
    "something else": lambda data: b"\x89PNG" * (len(data) // 4),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_index_is_made_again(root, place, scans, damage):
    listed = opened(root, place)
    (file,) = place.iterdir()
    good = file.read_bytes()
    file.write_bytes(DAMAGES[damage](good))
    before = len(of(scans, root))
    assert same(listed, opened(root, place))
    assert len(of(scans, root)) > before
    assert file.read_bytes() == good


@pytest.mark.usefixtures("settled")
def test_an_index_of_another_tree_is_not_used(root, tmp_path, place):
    other = put(tmp_path / "other", *(f"train/{c}/{i}.png" for c in "ab" for i in range(4)))
    opened(root, place)
    (mine,) = place.iterdir()
    opened(other, place)
    (its,) = set(place.iterdir()) - {mine}
    mine.write_bytes(its.read_bytes())
    assert opened(root, place).classes == ("ants", "bees")


@pytest.mark.usefixtures("settled")
def test_without_a_place_to_write_to_folders_are_listed(root, tmp_path):
    (tmp_path / "file").touch()
    assert same(opened(root, None), opened(root, tmp_path / "file" / "index"))


@pytest.mark.usefixtures("settled")
def test_a_folder_that_cannot_be_used_leaves_no_index(root, place):
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        opened(root, place)
    assert not place.exists()


@pytest.mark.usefixtures("settled")
def test_indexes_do_not_pile_up(root, place):
    for i in range(tree_index.MOST_FILES + 5):
        put(root, f"train/ants/more-{i}.png")
        opened(root, place)
    assert len(list(place.iterdir())) == tree_index.MOST_FILES


def test_the_names_of_an_index_survive_a_newer_one(root, place, monkeypatch):
    monkeypatch.setattr(tree_index, "SETTLED", -1.0)
    monkeypatch.setattr(tree_index, "MOST_FILES", 1)
    opened(root, place)
    mapped = opened(root, place)
    assert isinstance(mapped.train.names, Names)
    names = list(mapped.train.names)
    put(root, "train/ants/0.png")
    opened(root, place)
    assert list(mapped.train.names) == names
