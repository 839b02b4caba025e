"""Folders of images: both layouts, what counts as an image, and what is said about the rest."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl.config import DataConfig
from tl.data.image_tree import ImageTree
from tl.data.images import BadImage
from tl.data.sources import open_source
from tl.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (len(name), 0, 0)).save(path, "PNG")
    return root


def pair(root: Path) -> Path:
    """train/ and val/ of ants and bees, two images each."""
    return put(
        root,
        *(f"{p}/{c}/{i}.png" for p in ("train", "val") for c in ("ants", "bees") for i in "12"),
    )


def flat(root: Path, per_class: int = 10) -> Path:
    return put(root, *(f"{c}/{i}.png" for c in ("ants", "bees") for i in range(per_class)))


def opened(root: Path, seed: int = 0, **keys):
    return open_source(DataConfig(source="folder", root=str(root), **keys), seed)


def mistake(root: Path, **keys) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **keys)
    return str(caught.value)


# --- layouts -------------------------------------------------------------------------------


def test_train_and_val_are_listed_sorted_with_labels_by_class_name(tmp_path):
    source = opened(pair(tmp_path))
    assert source.classes == ("ants", "bees")
    assert list(source.train.names) == [
        f"train/{c}/{i}.png" for c in ("ants", "bees") for i in "12"
    ]
    assert source.val.labels.tolist() == [0, 0, 1, 1]
    assert source.val.labels.dtype == np.int64
    assert source.notes == ()


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_val_may_be_called_otherwise(tmp_path, name):
    (pair(tmp_path) / "val").rename(tmp_path / name)
    assert opened(tmp_path).val.names[0] == f"{name}/ants/1.png"


def test_one_folder_of_classes_is_split_by_class(tmp_path):
    source = opened(flat(tmp_path), val_fraction=0.3)
    assert np.bincount(source.val.labels).tolist() == [3, 3]
    assert np.bincount(source.train.labels).tolist() == [7, 7]
    assert not set(source.train.names) & set(source.val.names)


def test_without_val_a_part_of_train_is_held_out_and_a_note_says_so(tmp_path):
    source = opened(flat(tmp_path / "train").parent)
    assert (len(source.train), len(source.val)) == (16, 4)
    assert source.notes == ("no val/: held out 4 images of train/",)


def test_a_class_may_be_called_train(tmp_path):
    source = opened(put(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "train") for i in range(5))))
    assert source.classes == ("bus", "train")


def test_the_split_does_not_depend_on_listing_order_or_place(tmp_path, monkeypatch):
    first = opened(flat(tmp_path / "a"))
    entries = ImageTree._entries

    def shuffled(tree, below):
        found = list(entries(tree, below))
        random.Random(1).shuffle(found)
        return found

    monkeypatch.setattr(ImageTree, "_entries", shuffled)
    second = opened(flat(tmp_path / "b"))
    assert list(first.train.names) == list(second.train.names)
    assert list(first.val.names) == list(second.val.names)


def test_validation_labels_follow_the_names_of_train(tmp_path):
    (pair(tmp_path) / "val" / "ants").rename(tmp_path / "gone")
    source = opened(tmp_path)
    assert source.val.labels.tolist() == [1, 1]
    assert source.notes == ("not used: gone/", "1 class has no validation images: ants")


# --- what counts ---------------------------------------------------------------------------


def test_endings_count_without_case_and_the_rest_is_counted_and_named(tmp_path):
    pair(tmp_path)
    put(tmp_path, "train/ants/3.PNG", "train/ants/deep/er/4.JPG")
    for name in ("a.gif", "b.GIF", "c.txt", "noend"):
        (tmp_path / "train" / "ants" / name).touch()
    source = opened(tmp_path, extensions=["PNG", ".jpg"])
    assert list(source.train.names)[:4] == [
        f"train/ants/{name}" for name in ("1.png", "2.png", "3.PNG", "deep/er/4.JPG")
    ]
    assert source.notes == (
        "ignored 4 files whose ending is none of .jpg, .png:"
        " 2 .gif (train/ants/a.gif, train/ants/b.GIF), 1 .txt (train/ants/c.txt),"
        " 1 without an ending (train/ants/noend)",
    )


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    pair(tmp_path)
    put(tmp_path, "train/ants/._1.png", "train/ants/.cache/1.png", "train/.ipynb/1.png")
    source = opened(tmp_path)
    assert len(source.train) == 4
    assert source.notes == ()


def test_images_outside_class_folders_are_named(tmp_path):
    source = opened(put(pair(tmp_path), "train/lost.png"))
    assert source.notes == ("ignored 1 file in no class folder: train/lost.png",)


def test_links_are_followed_but_not_for_ever(tmp_path):
    pair(tmp_path / "data")
    put(tmp_path, "elsewhere/5.png")
    ants = tmp_path / "data" / "train" / "ants"
    (ants / "more").symlink_to(tmp_path / "elsewhere")
    (ants / "loop").symlink_to(ants)
    (ants / "up").symlink_to(tmp_path / "data" / "train")
    (ants / "broken.png").symlink_to(tmp_path / "nothing")
    source = opened(tmp_path / "data")
    assert list(source.train.names)[:4] == [
        f"train/ants/{name}" for name in ("1.png", "2.png", "broken.png", "more/5.png")
    ]
    assert source.train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(BadImage, match="No such file"):
        source.train.read(list(source.train.names).index("train/ants/broken.png"))


def test_what_is_called_like_an_image_counts_as_one_or_is_named(tmp_path):
    ants = pair(tmp_path) / "train" / "ants"
    os.mkfifo(ants / "pipe.png")
    os.mkfifo(ants / "pipe.txt")
    (ants / "self.png").symlink_to("self.png")
    put(tmp_path, "train/ants/folder.png/inside.png")
    (ants / "empty\n.jpg").mkdir()
    source = opened(tmp_path)
    assert list(source.train.names)[:5] == [
        f"train/ants/{name}"
        for name in ("1.png", "2.png", "folder.png/inside.png", "pipe.png", "self.png")
    ]
    assert source.notes == (
        "ignored 1 file whose ending is none of .bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff,"
        " .webp: 1 .txt (train/ants/pipe.txt)",
        "2 folders are called like an image; what is inside counts:"
        r" train/ants/empty\n.jpg, train/ants/folder.png",
    )
    for name in ("pipe", "self"):
        with pytest.raises(BadImage):
            source.train.read(list(source.train.names).index(f"train/ants/{name}.png"))


def test_links_do_not_multiply_without_end(tmp_path):
    """40 folders, each with two links to the next: a million million ways to the last."""
    put(pair(tmp_path / "data"), "../far/39/1.png")
    for i in range(39):
        for link in "ab":
            (tmp_path / "far" / str(i)).mkdir(exist_ok=True)
            (tmp_path / "far" / str(i) / link).symlink_to(tmp_path / "far" / str(i + 1))
    (tmp_path / "data/train/ants/far").symlink_to(tmp_path / "far" / "0")
    assert "in more than 100 ways. Remove" in mistake(tmp_path / "data")


def test_reading_gives_rgb_and_errors_name_the_whole_path(tmp_path):
    source = opened(pair(tmp_path))
    (tmp_path / "train/ants/2.png").write_text("no image")
    train = pickle.loads(pickle.dumps(source.train))
    assert train.read(0).getpixel((0, 0)) == (len("train/ants/1.png"), 0, 0)
    with pytest.raises(BadImage, match=str(tmp_path / "train/ants/2.png")):
        train.read(1)
    assert train.take([3]).take([0]).read(0).getpixel((0, 0)) == (len("train/bees/2.png"), 0, 0)


def test_the_background_is_that_of_the_config(tmp_path):
    Image.new("RGBA", (1, 1)).save(pair(tmp_path) / "train/ants/1.png")
    source = opened(tmp_path, background=[1, 2, 3])
    assert source.train.read(0).getpixel((0, 0)) == (1, 2, 3)


# --- mistakes ------------------------------------------------------------------------------


def test_a_root_that_is_none_says_so(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert "does not exist" in mistake(tmp_path / "missing")
    assert "is a file" in mistake(tmp_path / "file")
    assert "has no folders" in mistake(tmp_path / "empty")
    with pytest.raises(UserError, match=r"needs data\.root"):
        open_source(DataConfig(source="folder"), 0)


def test_a_single_class_hints_at_the_folder_below(tmp_path):
    assert f"data.root={tmp_path / 'hymenoptera'}" in mistake(pair(tmp_path / "hymenoptera").parent)


def test_a_class_without_images_is_named_with_what_is_there(tmp_path):
    folder = pair(tmp_path) / "train" / "wasps"
    folder.mkdir()
    assert f"class folder {folder} has no images" in mistake(tmp_path)
    assert "it holds no files" in mistake(tmp_path)
    (folder / "a.gif").touch()
    message = mistake(tmp_path, extensions=[".png"])
    assert "Files that end in .png count" in message
    assert "it holds 1 .gif (train/wasps/a.gif)" in message
    assert opened(tmp_path, classes=["ants", "bees"]).classes == ("ants", "bees")


def test_a_class_that_train_lacks_is_named_with_the_nearest(tmp_path):
    (pair(tmp_path) / "val" / "ants").rename(tmp_path / "val" / "Ants")
    message = mistake(tmp_path)
    assert f"{tmp_path / 'val'} has a class 'Ants' that {tmp_path / 'train'} lacks" in message
    assert "Did you mean 'ants'?" in message


def test_train_and_val_with_images_but_no_classes_are_no_classes(tmp_path):
    put(tmp_path, *(f"{part}/{i}.png" for part in ("train", "Val", "test") for i in range(3)))
    message = mistake(tmp_path)
    assert f"{tmp_path} has train/ and Val/, but no class folders in them" in message
    assert "train/0.png, train/1.png, train/2.png and 3 more" in message
    assert "as train/CLASS/ and Val/CLASS/" in message


def test_val_without_train_and_two_names_for_val_are_errors(tmp_path):
    pair(tmp_path / "a")
    (tmp_path / "a/train").rename(tmp_path / "a/fit")
    assert "but no train/" in mistake(tmp_path / "a")
    (pair(tmp_path / "b") / "valid").mkdir()
    assert "val/ and valid/, which mean the same" in mistake(tmp_path / "b")


def test_a_folder_that_cannot_be_listed_is_named(not_root):
    closed = pair(not_root) / "train" / "ants"
    closed.chmod(0)
    assert f"cannot list {closed}: Permission denied" in mistake(not_root)
    closed.chmod(0o700)


# --- real images ---------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (SHARED / name).is_dir() and not os.environ.get("CI"):
        pytest.skip("needs ../shared/data")
    return SHARED / name


def test_the_ants_and_bees_of_the_tutorial():
    source = opened(real("hymenoptera"))
    assert source.classes == ("ants", "bees")
    assert (len(source.train), len(source.val)) == (244, 153)
    assert "ignored 1 file whose ending is none of" in source.notes[0]
    assert "train/ants/imageNotFound.gif" in source.notes[0]
    assert source.train.read(0).mode == source.val.read(152).mode == "RGB"


def test_a_real_flat_folder_is_split():
    source = opened(real("pacs/photo"), seed=1)
    assert len(source.classes) == 7
    total = np.bincount(source.train.labels) + np.bincount(source.val.labels)
    assert (np.abs(np.bincount(source.val.labels) - 0.2 * total) <= 0.5).all()
