"""The model card: what is called something nasty stays text, and its header is Hugging Face's."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tl.errors import printable
from tl.export.markdown import plain, rows

from .conftest import save_model, tl_export

HOSTILE = ['"quoted": [x', "<script>alert(1)</script>", "a\n---\nlicense: mit", "|`*_[x](http://y)"]


class Cells(HTMLParser):
    """The text of a table's cells, and all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def rendered(text: str) -> Cells:
    return Cells(MarkdownIt("commonmark").enable("table").render(text))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_in_a_table_is_read_back_as_text(name: str) -> None:
    seen = rendered(rows(["output", "class"], [(0, name)]))
    assert seen.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert seen.cells[0] == "0"
    # A cell has no space around it in Markdown.
    assert seen.cells[1].strip() == printable(name).strip()


def test_no_name_becomes_a_link_of_github() -> None:
    for name in ("www.x.org", "WWW.x.org", "https://x.org", "@someone", ":smile:"):
        assert not re.search(r"www\.|(?<!\\)[:@]", plain(name), re.IGNORECASE)


def test_a_card_of_hostile_names_is_read_by_hugging_face(images: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "<b>model", "squeezenet1_1", classes=HOSTILE)
    out = tmp_path / "out"
    words = ["--to", "safetensors", "--images", images, "--output", out, "--license", "mit: x"]
    assert tl_export(folder, *words) == 0
    text = (out / "README.md").read_text("utf-8")
    card = ModelCard(text)
    assert card.data.license == "mit: x"
    assert card.data.pipeline_tag == "image-classification"
    header, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["library_name"] == "torchvision"
    seen = rendered(body)
    assert not seen.tags & {"script", "a", "b"}
    assert [seen.cells[i] for i in (1, 3, 5, 7)] == [printable(name) for name in HOSTILE]
