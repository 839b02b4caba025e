"""From a name in the config to a source; classes and seeded subsets; splits as properties."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tl.config import DataConfig
from tl.data import digits
from tl.data.sources import open_source
from tl.data.split import Source, Split, fingerprint, hold_out, keep_some
from tl.errors import UserError


def opened(seed: int = 0, **keys) -> Source:
    return open_source(DataConfig(**keys), seed)


def mistake(**keys) -> str:
    with pytest.raises(UserError) as caught:
        opened(**keys)
    return str(caught.value)


def red(index: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (index, 0, 0))


def split_of(labels: list[int], names: list[str] | None = None) -> Split:
    names = names or [f"image {i}" for i in range(len(labels))]
    return Split(names, np.array(labels, dtype=np.int64), red)


# --- properties of the split and of subsets ------------------------------------------------

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)
seeds = st.integers(0, 2**63)


@given(labels, st.floats(0.01, 0.99), seeds)
def test_a_split_is_disjoint_complete_and_stratified(labels, fraction, seed):
    everything = split_of(labels)
    train, val = hold_out(everything, fraction, seed)
    assert sorted([*train.names, *val.names]) == sorted(everything.names)
    for label in set(labels):
        n, held = labels.count(label), val.labels.tolist().count(label)
        assert held < n  # at least one is left to train on
        assert abs(held - fraction * n) <= 0.5 + 1e-9 or held == n - 1


@given(labels, seeds, st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_images(labels, seed, random):
    pairs = [(f"image {i}", label) for i, label in enumerate(labels)]
    first = hold_out(split_of(labels), 0.3, seed)
    random.shuffle(pairs)
    second = hold_out(split_of([b for _, b in pairs], [a for a, _ in pairs]), 0.3, seed)
    for one, other in zip(first, second, strict=True):
        assert sorted(one.names) == sorted(other.names)


@given(st.integers(2, 60), seeds)
def test_a_new_image_moves_at_most_one_other(n, seed):
    before = set(hold_out(split_of([0] * n), 0.3, seed)[1].names)
    after = set(hold_out(split_of([0] * (n + 1)), 0.3, seed)[1].names)
    assert len(before - after) <= 1


@given(labels, seeds, st.integers(1, 9), st.integers(1, 30))
def test_subsets_are_nested_and_within_their_limits(labels, seed, per_class, total):
    everything = split_of(labels)
    kept = keep_some(everything, seed, per_class, total)
    more = keep_some(everything, seed, per_class + 1, None)
    assert len(kept) == min(total, sum(min(per_class, labels.count(c)) for c in set(labels)))
    assert set(kept.names) <= set(more.names)
    positions = [everything.names.index(name) for name in kept.names]
    assert positions == sorted(positions)
    assert kept.labels.tolist() == [labels[i] for i in positions]


def test_another_seed_gives_another_split():
    everything = split_of([0] * 50)
    assert hold_out(everything, 0.5, 0)[1].names != hold_out(everything, 0.5, 1)[1].names


@given(st.lists(st.integers(0, 9), max_size=10), st.data())
def test_take_of_take_reads_the_same_images(first, data):
    taken = split_of(list(range(10))).take(first)
    second = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=10)) if first else []
    again = pickle.loads(pickle.dumps(taken.take(second)))
    expected = [first[i] for i in second]
    assert list(again.names) == [f"image {i}" for i in expected]
    assert again.labels.tolist() == expected
    assert [again.read(i).getpixel((0, 0))[0] for i in range(len(again))] == expected


def test_a_split_and_a_source_refuse_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels must be \(2,\) int64"):
        Split(["a", "b"], np.zeros(3, dtype=np.int64), red)
    with pytest.raises(ValueError, match="must be 0 to 1"):
        Source("s", ("a", "b"), split_of([0, 2]), split_of([0]))


# --- digits and the choice of a source -----------------------------------------------------


def test_digits_are_the_source_without_a_root():
    source = opened()
    assert source.name == "digits"
    assert source.classes == tuple("0123456789")
    assert (len(source.train), len(source.val)) == (1438, 359)
    assert source.train.names[0].startswith("digits/")


def test_digits_keep_their_pixels_scaled_to_a_byte():
    from sklearn.datasets import load_digits

    source, raw = opened(), load_digits()
    index = int(source.train.names[5].removeprefix("digits/"))
    image = source.train.read(5)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert source.train.labels[5] == raw.target[index]
    for channel in range(3):
        got = np.asarray(image)[..., channel]
        assert np.abs(got - raw.images[index] * 255 / 16).max() <= 0.5


@pytest.mark.parametrize("file", [digits.FILE, "no such file"])
def test_digits_are_read_as_scikit_learn_reads_them(monkeypatch, file):
    """From its file, and by itself where its file is not where we look."""
    from sklearn.datasets import load_digits

    monkeypatch.setattr(digits, "FILE", file)
    (grey, labels), raw = digits._load(), load_digits()
    np.testing.assert_array_equal(grey, raw.images)
    np.testing.assert_array_equal(labels, raw.target)
    assert labels.dtype == np.int64


def test_digits_import_no_scikit_learn():
    """It takes each process more than a second."""
    code = "import sys; from tl.data import digits; digits._load(); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_root_means_folders(tmp_path):
    assert "has no folders" in mistake(root=str(tmp_path))


def test_unknown_sources_offer_the_nearest():
    assert "Did you mean 'digits'?" in mistake(source="digit")
    assert "Did you mean 'MNIST'?" in mistake(source="torchvision:mnist")


# --- classes and subsets through the config ------------------------------------------------


def test_classes_are_kept_in_the_order_asked_for():
    source = opened(classes=[7, "3"])
    assert source.classes == ("7", "3")
    full = opened()
    sevens = [n for n, label in zip(full.val.names, full.val.labels, strict=True) if label == 7]
    kept = np.flatnonzero(source.val.labels == 0)
    assert [source.val.names[i] for i in kept] == sevens


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([3, 13], "unknown class '13' (data.classes)"),
        ([3, "3"], "names '3' twice"),
        ([3], "needs at least two"),
        ([], "needs at least two"),
    ],
)
def test_mistaken_classes(classes, message):
    assert message in mistake(classes=classes)


def test_limits_leave_the_classes_alone_and_say_which_are_missing():
    source = opened(train_per_class=5, max_val=7)
    assert np.bincount(source.train.labels).tolist() == [5] * 10
    assert len(source.val) == 7
    tiny = opened(max_train=3)
    assert len(tiny.classes) == 10
    assert any("no training images" in note for note in tiny.notes)


def test_limits_are_the_same_for_the_same_seed_only():
    assert opened(max_train=50).train.names == opened(max_train=50).train.names
    assert opened(max_train=50).train.names != opened(seed=1, max_train=50).train.names


# --- a source of one's own -----------------------------------------------------------------

OWN = """
import numpy as np
from PIL import Image
from tl.data.split import Source, Split

def read(index):
    return Image.new("RGB", (1, 1))

def good(data, seed):
    split = Split([f"{seed}-{i}" for i in range(4)], np.array([0, 1, 0, 1]), read)
    return Source("mine", ("a", "b"), split, split.take([0, 1]), ("hello",))

def empty(data, seed):
    source = good(data, seed)
    return Source("mine", ("a", "b"), source.train, source.val.take([]))

def nothing(data, seed):
    return None

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_source", None)


@pytest.mark.usefixtures("own")
def test_a_source_of_ones_own_is_called_with_the_config_and_the_seed():
    source = opened(seed=5, source="own_source:good", classes=["b", "a"])
    assert source.classes == ("b", "a")
    assert source.train.names[0] == "5-0"
    assert source.train.labels.tolist() == [1, 0, 1, 0]
    assert source.notes == ("hello",)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_sauce:good", "cannot be imported"),
        (":good", "cannot be imported"),
        ("own_source:god", "Did you mean 'good'?"),
        ("own_source:constant", "is int, not a function"),
        ("own_source:nothing", "returned NoneType"),
        ("own_source:empty", "has no validation images"),
    ],
)
def test_mistakes_in_a_source_of_ones_own(name, message):
    assert message in mistake(source=name)


# --- fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_changes_with_names_labels_and_files(tmp_path):
    path = tmp_path / "a.png"
    red(1).save(path)
    split = Split(["a.png"], np.array([0]), red, tmp_path)
    first = fingerprint(split)
    assert first == fingerprint(split)
    assert first != fingerprint(Split(["a.png"], np.array([1]), red, tmp_path))
    path.write_bytes(path.read_bytes() + b"\0")
    assert first != fingerprint(split)
    path.unlink()
    assert first != fingerprint(split)
