"""Draws terminal.svg and terminal_end.svg: the screen of a real run, midway and at its end.

    python docs/images/draw_terminal.py ARGUMENTS OF tl train

The run is made in the present folder, in a terminal of 80 columns. The documentation's are of

    python docs/images/draw_terminal.py configs/lp_ft.yaml data.root=FOLDER data.image_size=128 \\
        model.name=squeezenet1_0 model.weights=squeezenet1_0-imagenet.pth epochs=4 run_dir=runs/ants

FOLDER being hymenoptera, ants and bees.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from terminal import Terminal  # noqa: E402

COLUMNS, LINES = 80, 24
MIDWAY = re.compile(r"phase 2/2 .* step (\d+)/(\d+) .* \d:\d\d left")


def as_svg(screen: pyte.Screen, title: str) -> str:
    """What is on a terminal's screen, down to its last row that says something."""
    console = Console(record=True, width=screen.columns, file=io.StringIO(), color_system="256")
    rows = [row for row in range(screen.lines) if screen.display[row].strip()]
    for row in range(rows[-1] + 1):
        text = Text(no_wrap=True)
        letters = [screen.buffer[row][column] for column in range(screen.columns)]
        # A word each, for it to have a place of its own whatever the font of who looks at it.
        for (style, _), alike in itertools.groupby(letters, lambda x: (style_of(x), x.data == " ")):
            text.append("".join(letter.data for letter in alike), style)
        text.rstrip()
        console.print(text)
    return console.export_svg(title=title, unique_id="terminal")


def style_of(letter: pyte.screens.Char) -> Style:
    """rich's style of what is at a place of a screen."""
    colour: str | None = {"brown": "yellow"}.get(letter.fg, letter.fg)
    if re.fullmatch("[0-9a-f]{6}", letter.fg):
        colour = f"#{letter.fg}"
    elif letter.fg == "default":
        colour = None
    elif letter.fg.startswith("bright"):
        colour = letter.fg.replace("bright", "bright_")
    return Style(color=colour, bold=letter.bold, italic=letter.italics)


def midway(rows: list[str]) -> bool:
    """Well within the second phase, with an evaluation of it in sight."""
    found = next(filter(None, map(MIDWAY.match, rows)), None)
    return found is not None and int(found[1]) >= 0.8 * int(found[2])


def main() -> None:
    command = [sys.executable, "-m", "launch", "train", *sys.argv[1:]]
    with Terminal(command, COLUMNS, LINES, WANDB_MODE="disabled") as terminal:
        title = "tl train configs/lp_ft.yaml …"
        terminal.run_until(midway, seconds=1200)
        (HERE / "terminal.svg").write_text(as_svg(terminal.screen, title))
        assert terminal.run_to_the_end(seconds=1200) == 0
        (HERE / "terminal_end.svg").write_text(as_svg(terminal.screen, title))


if __name__ == "__main__":
    main()
