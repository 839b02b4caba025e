"""What images a user names: files, folders, patterns, lists; each once, in the order of naming."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.config import DataConfig
from tl.data.image_paths import Inputs, list_images
from tl.data.image_tree import ImageTree
from tl.data.path_lists import paths_in, paths_in_csv
from tl.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that relative paths are below; names are written beside it."""
    for name in ("a/1.png", "a/2.PNG", "a/notes.txt", "a-b/3.png", "a/b/4.jpg", "c.png", "[d].png"):
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def listed(*paths: str, **more: object) -> list[str]:
    inputs = Inputs(paths, **more)  # type: ignore[arg-type]
    inputs.check()
    return list(list_images(inputs, DataConfig(), Path("..")).paths)


def say(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_patterns_are_sorted_and_a_file_of_that_name_is_itself(here: Path) -> None:
    assert listed("a/*.png", "*.png") == ["a/1.png", "[d].png", "c.png"]
    assert listed("**/*.png") == ["[d].png", "a-b/3.png", "a/1.png", "c.png"]
    assert listed("[d].png") == ["[d].png"]
    # A folder that matches is searched; the matches are sorted, as a shell would.
    assert listed("./a*") == ["./a/1.png", "./a/2.PNG", "./a/b/4.jpg", "./a-b/3.png"]


def test_all_kinds_together_are_in_the_order_of_naming(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "lists").mkdir()
    (here / "lists" / "list.csv").write_text("id,path\n7,../a/1.png\n8,/x/9.png\n")
    say(b"c.png\nnowhere.png\r\n\n./a/1.png", monkeypatch)
    found = listed("a-b", "-", "a/*.PNG", csv="lists/list.csv")
    assert found == ["a-b/3.png", "c.png", "nowhere.png", "./a/1.png", "a/2.PNG", "/x/9.png"]
    say(b"line\nfeed.png\0c.png\0", monkeypatch)
    assert listed("-", null=True) == ["line\nfeed.png", "c.png"]


@given(
    st.lists(st.binary(min_size=1, max_size=8).map(lambda b: b.translate(None, b"\0\n\r") or b"x")),
    st.sampled_from([(b"\n", False), (b"\r\n", False), (b"\0", True)]),
    st.integers(1, 5),
)
def test_any_list_is_read_as_it_comes(
    names: list[bytes], end: tuple[bytes, bool], at_a_time: int
) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(at_a_time)

    content = end[0].join(names)
    assert list(paths_in(Slow(content), "it", end[1])) == [os.fsdecode(name) for name in names]


def test_a_csv_may_have_any_name_in_it(tmp_path: Path) -> None:
    content = 'x,"the, path"\r\n1,"a\nb,""c"".png"\r\n2,\udcff.png\r\n'
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + content.encode(errors="surrogateescape"))
    found = list(paths_in_csv(str(tmp_path / "list.csv"), "the, path"))
    assert found == [f'{tmp_path}/a\nb,"c".png', f"{tmp_path}/\udcff.png"]


@pytest.mark.parametrize(
    ("paths", "more", "says"),
    [
        (["no/*.png"], {}, "nothing matches no/\\*.png"),
        (["a/3.png"], {}, "a/3.png does not exist"),
        (["c.pgn"], {}, "Did you mean 'c.png'"),
        (["a", "-", "-"], {}, "named twice"),
        ([], {"csv": "list.csv"}, "unknown column 'path' .*Did you mean 'paths'"),
        ([], {"csv": "list.csv", "column": "id"}, "line 3: no path in the column 'id'"),
        ([], {"csv": "no.csv"}, "cannot read --csv no.csv: No such file"),
        (["-"], {}, "line 2 of standard input holds a NUL byte.* give -0"),
    ],
)
def test_mistakes(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    paths: list[str],
    more: dict[str, str],
    says: str,
) -> None:
    (here / "list.csv").write_text("id,paths\n1,a.png\n,b.png\n")
    say(b"a\nb\0c\0", monkeypatch)
    with pytest.raises(UserError, match=says):
        listed(*paths, **more)


def test_an_empty_folder_says_what_was_passed_over(here: Path) -> None:
    (here / "docs").mkdir()
    (here / "docs" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no images in docs.*ignored 1 file .*: 1 \.txt"):
        listed("docs")


@given(names=st.lists(st.lists(st.text("-/.0a", min_size=1, max_size=4), min_size=1, max_size=4)))
def test_a_walk_is_in_the_order_of_whole_paths(
    names: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts in names:
        plain = [f"x{part.replace('/', '')}" for part in parts]
        (root / Path(*plain)).mkdir(parents=True, exist_ok=True)
        (root / Path(*plain) / f"{plain[-1]}.png").touch()
    found = [path for kind, path in ImageTree.at(root, DataConfig()).walk("") if kind == "images"]
    there = [path for path in root.rglob("*.png") if path.is_file()]
    assert found == sorted(str(path.relative_to(root)) for path in there)


def test_a_list_takes_less_memory_than_its_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 100_000
    content = "".join(f"/data/of/somebody/photos/{i:08}.jpg\n" for i in range(count))
    say(content.encode(), monkeypatch)
    tracemalloc.start()
    try:
        images = list_images(Inputs(["-"]), DataConfig(), tmp_path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images.paths) == count
    assert images.paths[count - 1] == "/data/of/somebody/photos/00099999.jpg"
    # 24 bytes each to find repeated ones, and one block at a time; as strings they take 9.5 MB.
    assert most < 24 * count + 4e6
