"""Domains: what is learned from, what is adapted to, what that is tested on, and what cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl.arguments import load
from tl.config import DataConfig
from tl.data.domains import source_free
from tl.data.sources import open_source
from tl.data.split import AnyImages, Source, Split, Target, Unlabelled
from tl.errors import UserError


def shade(name: str) -> tuple[int, int, int]:
    """A colour that only the image of this path has."""
    return tuple(sum(map(ord, name)) * prime % 251 for prime in (3, 7, 31))  # type: ignore[return-value]


def put(root: Path, *names: str) -> Path:
    """An image in its own colour for each of these paths below ``root``."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), shade(f"{root.name}/{name}")).save(path, "PNG")
    return root


def of_classes(root: Path, *classes: str, each: int = 5, below: str = "") -> Path:
    return put(root, *(f"{below}{c}/{i}.png" for c in classes for i in range(each)))


def opened(seed: int = 0, index: Path | None = None, **keys: Any) -> Source:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}
    return open_source(DataConfig(**given), seed, index)


def target(**keys: Any) -> Target:
    found = opened(**keys).target
    assert found is not None
    return found


def labelled(images: AnyImages) -> dict[str, int]:
    assert isinstance(images, Split)
    return dict(zip(images.names, images.labels.tolist(), strict=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Classes ants, bees and wasps."""
    return of_classes(tmp_path / "source", "ants", "bees", "wasps")


# --- the target ----------------------------------------------------------------------------


def test_class_folders_of_the_target_are_matched_by_name_and_looked_at_for_the_test_alone(
    tmp_path: Path, source: Path
) -> None:
    # By position "bees" would be the first class.
    of_classes(tmp_path / "target", "bees", "wasps", each=3)
    whole = opened(source_root=source, target_root=tmp_path / "target")
    found = whole.target
    assert found is not None
    assert whole.classes == ("ants", "bees", "wasps")
    assert labelled(found.test) == {
        f"{name}/{i}.png": label for name, label in (("bees", 1), ("wasps", 2)) for i in range(3)
    }
    assert type(found.images) is Unlabelled
    assert not hasattr(found.images, "labels")
    assert list(found.images.names) == list(found.test.names)
    assert "the target is adapted to and tested on the same images" in whole.notes


def test_root_is_another_name_of_source_root(tmp_path: Path, source: Path) -> None:
    of_classes(tmp_path / "target", "bees")
    both = [opened(**{key: source}, target_root=tmp_path / "target") for key in ROOTS]
    for part in ("train", "val"):
        one, other = (getattr(whole, part) for whole in both)
        assert labelled(one) == labelled(other)
    with pytest.raises(UserError, match=r"^data\.source_root .*nowhere does not exist"):
        opened(source_root=tmp_path / "nowhere", target_root=tmp_path / "target")


ROOTS = ("root", "source_root")


def test_a_private_class_of_the_target_is_adapted_to_and_left_out_of_the_test(
    tmp_path: Path, source: Path
) -> None:
    of_classes(tmp_path / "target", "ants", "beetles", "bees", each=2)
    found = target(source_root=source, target_root=tmp_path / "target")
    assert len(found.images) == 6
    assert labelled(found.test) == {
        "ants/0.png": 0, "ants/1.png": 0, "bees/0.png": 1, "bees/1.png": 1
    }  # fmt: skip
    assert any("1 class of the target is not the source's" in n and "beetles" in n
               for n in found.notes)  # fmt: skip
    for i in range(4):  # each is read as what it is called
        assert found.test.read(i).getpixel((0, 0)) == shade(f"target/{found.test.names[i]}")


def test_classes_that_are_left_out_of_the_source_are_private_to_the_target(
    tmp_path: Path, source: Path
) -> None:
    of_classes(tmp_path / "target", "ants", "bees", "wasps", each=2)
    keys = {"source_root": source, "target_root": tmp_path / "target"}
    found = target(**keys, classes=["wasps", "ants"])
    assert len(found.images) == 6
    assert set(labelled(found.test).values()) == {0, 1}
    assert labelled(found.test)["wasps/0.png"] == 0


def test_a_target_with_train_and_val_is_adapted_to_the_one_and_tested_on_the_other(
    tmp_path: Path, source: Path
) -> None:
    root = of_classes(tmp_path / "target", "ants", "bees", below="train/")
    of_classes(root, "bees", each=2, below="val/")
    put(root, "test/ants/0.png")
    found = target(source_root=source, target_root=root)
    assert sorted(found.images.names) == sorted(
        f"train/{c}/{i}.png" for c in ("ants", "bees") for i in range(5)
    )
    assert labelled(found.test) == {"val/bees/0.png": 1, "val/bees/1.png": 1}
    assert found.notes == ("not used: test/",)


@pytest.mark.parametrize("alone", ["train", "Val"])
def test_one_of_the_two_alone_is_both(tmp_path: Path, source: Path, alone: str) -> None:
    root = of_classes(tmp_path / "target", "ants", "bees", each=2, below=f"{alone}/")
    put(root, "test/ants/0.png")
    found = target(source_root=source, target_root=root)
    assert labelled(found.test) == {
        f"{alone}/{c}/{i}.png": label for c, label in (("ants", 0), ("bees", 1)) for i in range(2)
    }
    assert list(found.images.names) == list(found.test.names)
    assert "not used: test/" in found.notes


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As in VisDA."""
    for name in ("source", "target"):
        of_classes(tmp_path / name, "bus", "train", each=4)
    found = target(source_root=tmp_path / "source", target_root=tmp_path / "target")
    assert sorted(set(labelled(found.test).values())) == [0, 1]
    assert len(found.images) == 8


def test_a_folder_called_train_among_others_is_one_of_them(tmp_path: Path, source: Path) -> None:
    root = put(tmp_path / "target", "train/1.png", "boats/1.png", "cars/1.png")
    found = target(source_root=source, target_root=root, target_labels="none")
    assert list(found.images.names) == ["boats/1.png", "cars/1.png", "train/1.png"]


@pytest.mark.parametrize("parts", [("",), ("train/", "val/")])
def test_a_target_without_class_folders_has_no_labels(
    tmp_path: Path, source: Path, parts: tuple[str, ...]
) -> None:
    root = put(tmp_path / "target", *(f"{part}{i}.png" for part in parts for i in range(3)))
    found = target(source_root=source, target_root=root)
    assert list(found.images.names) == [f"{parts[0]}{i}.png" for i in range(3)]
    assert list(found.test.names) == [f"{parts[-1]}{i}.png" for i in range(3)]
    assert type(found.test) is Unlabelled


def test_target_labels_none_makes_no_class_of_any_folder(tmp_path: Path, source: Path) -> None:
    root = put(of_classes(tmp_path / "target", "ants", "2024", each=2), "loose.png")
    keys = {"source_root": source, "target_root": root}
    assert len(target(**keys).test) == 2  # nothing but ants/
    found = target(**keys, target_labels="none")
    assert type(found.test) is Unlabelled
    assert len(found.images) == len(found.test) == 5


def test_max_target_keeps_as_many_of_the_images_and_tests_on_these(
    tmp_path: Path, source: Path
) -> None:
    root = of_classes(tmp_path / "target", "ants", "bees", "beetles", each=20)
    keys = {"source_root": source, "target_root": root}
    few, more = (target(**keys, max_target=most) for most in (12, 30))
    assert (len(few.images), len(more.images)) == (12, 30)
    assert set(few.images.names) < set(more.images.names)
    assert set(target(**keys, max_target=12, seed=1).images.names) != set(few.images.names)
    # What is tested on is adapted to, as the note says.
    of_known = {name for name in few.images.names if not name.startswith("beetles/")}
    assert set(few.test.names) == of_known
    for i, name in enumerate(few.images.names):
        assert few.images.read(i).getpixel((0, 0)) == shade(f"target/{name}")


def test_max_val_limits_a_test_part_of_its_own_and_max_target_does_not(
    tmp_path: Path, source: Path
) -> None:
    root = of_classes(tmp_path / "target", "ants", "bees", below="train/")
    of_classes(root, "ants", "bees", each=9, below="val/")
    keys = {"source_root": source, "target_root": root, "max_target": 3}
    assert [len(target(**keys).images), len(target(**keys).test)] == [3, 18]
    assert [len(target(**keys, max_val=7).images), len(target(**keys, max_val=7).test)] == [3, 7]


def test_a_target_is_listed_from_its_index_where_that_holds(tmp_path: Path, source: Path) -> None:
    root = of_classes(tmp_path / "target", "ants", "bees")
    for path in (root, *root.iterdir()):
        os.utime(path, (1, 1))
    keys = {"source_root": source, "target_root": root, "index": tmp_path / "index"}
    first, second = (target(**keys) for _ in range(2))
    assert list(first.images.names) == list(second.images.names)
    put(root, "bees/new.png")
    assert "bees/new.png" in target(**keys).images.names


# --- several sources -----------------------------------------------------------------------


def three_domains(root: Path) -> Path:
    """Art has ants and bees, clip bees and wasps, photo all."""
    of_classes(root, "ants", "bees", below="art/")
    of_classes(root, "bees", "wasps", each=10, below="clip/")
    of_classes(root, "ants", "bees", "wasps", below="photo/")
    return root


def test_several_domains_are_one_source_of_the_classes_of_all(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    found = opened(root=root, source_domains=["clip", "art"], target_domain="photo")
    assert found.domains == ("clip", "art")
    assert found.classes == ("ants", "bees", "wasps")
    for split, each in ((found.train, {"clip": 8, "art": 4}), (found.val, {"clip": 2, "art": 1})):
        for name, label in labelled(split).items():
            assert found.classes[label] == name.split("/")[1]
        counts = {d: [n.split("/")[0] for n in split.names].count(d) for d in each}
        assert counts == {d: 2 * n for d, n in each.items()}
        for i, name in enumerate(split.names):
            assert (root / name).is_file()  # a message names the file
            assert split.read(i).getpixel((0, 0)) == shade(f"{root.name}/{name}")
    assert found.target is not None
    assert set(labelled(found.target.test).values()) == {0, 1, 2}


def test_domain_ids_are_those_of_the_names_also_when_some_images_are_kept(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    for keys in ({}, {"max_train": 9}, {"classes": ["bees", "ants"]}, {"train_per_class": 2}):
        found = opened(root=root, source_domains=["photo", "art"], target_domain="clip", **keys)
        ids = found.domain_ids()
        assert ids.dtype == np.int64
        assert [found.domains[i] for i in ids] == [n.split("/")[0] for n in found.train.names]


def test_a_domain_may_be_called_by_a_number(tmp_path: Path) -> None:
    for name in ("1", "02", "3"):
        of_classes(tmp_path, "ants", "bees", below=f"{name}/")
    found = opened(root=tmp_path, source_domains=[1, "02"], target_domain=3)
    assert found.domains == ("1", "02")
    assert found.target is not None


def test_one_domain_of_a_root_is_a_source_like_its_folder(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    named = opened(root=root, source_domains=["art"], target_domain="photo")
    given = opened(source_root=root / "art", target_root=root / "photo")
    assert labelled(named.train) == labelled(given.train)
    assert named.target is not None
    assert given.target is not None
    assert labelled(named.target.test) == labelled(given.target.test)
    assert named.domains == ()


def test_several_domains_need_no_target(tmp_path: Path) -> None:
    found = opened(root=three_domains(tmp_path), source_domains=["art", "clip"])
    assert found.target is None
    assert len(found.train) == 24


def test_an_image_of_a_joined_source_may_be_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    for domain in ("art", "clip"):
        for name in ("ants", "bees"):
            folder = tmp_path / domain / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (64, 64)).save(folder / f"{i}.jpg")
    found = opened(root=tmp_path, source_domains=["art", "clip"])
    decoded = found.train.read.shrunk(len(found.train) - 1, lambda size: (8, 8))  # type: ignore[attr-defined]
    assert decoded.image.size == (8, 8)


def test_without_a_source_there_are_the_classes_of_the_weights(tmp_path: Path) -> None:
    of_classes(tmp_path / "target", "bees", each=2)
    data = DataConfig(target_root=str(tmp_path / "target"))
    found = open_source(data, 0, known_classes=["ants", "bees"])
    assert not found.is_labelled
    assert found.classes == source_free(["ants", "bees"]).classes
    assert found.target is not None
    assert set(labelled(found.target.test).values()) == {1}


# --- what cannot be ------------------------------------------------------------------------


def mistake(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(**keys)
    return str(caught.value)


def test_no_class_in_common_is_a_mistake_that_shows_both(tmp_path: Path, source: Path) -> None:
    of_classes(tmp_path / "target", "cats", "dogs")
    said = mistake(source_root=source, target_root=tmp_path / "target")
    for part in ("no class in common", "cats, dogs here", "ants, bees, wasps there", "target_root"):
        assert part in said
    assert "data.target_labels=none" in said


@pytest.mark.parametrize("empty", ["", "train", "val"])
def test_a_target_without_images_is_a_mistake_that_names_the_folder_and_what_counts(
    tmp_path: Path, source: Path, empty: str
) -> None:
    root = tmp_path / "target"
    for part in ("train", "val") if empty else ():
        of_classes(root, *(() if part == empty else ("ants",)), below=f"{part}/")
    (root / empty).mkdir(parents=True, exist_ok=True)
    (root / empty / "notes.txt").touch()
    said = mistake(source_root=source, target_root=root)
    assert f"data.target_root {root / empty} has no images" in said
    assert "data.extensions" in said


def test_nothing_to_test_on_is_a_mistake_before_training(tmp_path: Path, source: Path) -> None:
    root = of_classes(tmp_path / "target", "beetles", each=40)
    (root / "ants").mkdir()
    said = mistake(source_root=source, target_root=root)
    assert "no images to test on" in said
    assert "data.target_labels=none" in said


def test_the_target_cannot_be_the_source_however_it_is_called(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for same in (source, tmp_path / "link", source / "ants" / "..", Path(f"{source}/.")):
        said = mistake(source_root=source, target_root=same)
        assert "is the folder of the source as well" in said
        assert "Give the folder of the other domain" in said
    root = three_domains(tmp_path / "root")
    (root / "again").symlink_to(root / "art")
    for same in ("art", "again"):
        said = mistake(root=root, source_domains=["clip", "art"], target_domain=same)
        assert said.startswith(f"data.target_domain {root / same} is the folder of the source")


@pytest.mark.parametrize("what", ["does not exist", "is a file, not a folder"])
def test_a_target_that_is_no_folder_is_a_mistake(tmp_path: Path, source: Path, what: str) -> None:
    if "file" in what:
        (tmp_path / "target").touch()
    assert f"target {what}" in mistake(source_root=source, target_root=tmp_path / "target")


def test_a_domain_that_there_is_not_is_a_mistake_that_offers_the_nearest(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    said = mistake(root=root, source_domains=["art", "clipp"], target_domain="photo")
    assert "Did you mean 'clip'?" in said
    assert "data.source_domains" in said
    said = mistake(root=root, source_domains=["art", "clip"], target_domain="fotos")
    assert "Did you mean 'photo'?" in said
    assert "data.target_domain" in said
    said = mistake(root=root / "nowhere", source_domains=["art"], target_domain="photo")
    assert f"data.root {root / 'nowhere'} is no folder" in said


def test_a_domain_is_named_once(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    said = mistake(root=root, source_domains=["art", "clip", "art"], target_domain="photo")
    assert "data.source_domains names art twice" in said


def test_a_domain_that_shares_no_class_with_the_others_is_a_mistake(tmp_path: Path) -> None:
    root = of_classes(three_domains(tmp_path), "cats", "dogs", below="pets/")
    said = mistake(root=root, source_domains=["art", "pets"], target_domain="photo")
    assert "domain art has no class in common with the others" in said
    assert "Leave it out of data.source_domains" in said


def test_domains_are_folders_whatever_else_is_named(tmp_path: Path) -> None:
    root = three_domains(tmp_path)
    said = mistake(source="digits", root=root, source_domains=["art"], target_domain="photo")
    assert "data.source is digits: leave data.source out" in said


def test_a_target_alone_asks_for_a_source_or_a_model(tmp_path: Path) -> None:
    of_classes(tmp_path / "target", "ants")
    said = mistake(target_root=tmp_path / "target")
    assert "data.source_root" in said
    assert "model.weights=RUN" in said


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["root=a", "source_root=b"], "give either root or source_root"),
        (["source_root=a", "source_domains=[b]"], "give either source_root or source_domains"),
        (["root=a", "source_domains=[b]", "target_domain=c", "target_root=d"], "give either targ"),
        (["target_domain=c"], "folders in root: give root"),
        (["source_domains=[c]"], "folders in root: give root"),
        (["root=a", "target_domain=c"], "give source_domains with target_domain"),
        (["root=a", "source_domains=[]"], "source_domains"),
        (["root=a", "target_labels=yes"], "target_labels"),
        (["root=a", "max_target=0"], "max_target"),
    ],
)
def test_keys_that_do_not_go_together_are_mistakes(keys: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, [f"data.{key}" for key in keys], environ={})
