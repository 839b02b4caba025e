"""What `tl report` does: read runs and their images, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tl.cache_folder import cache_folder
from tl.data.sources import open_source
from tl.engine.evaluation_request import request
from tl.errors import UserError
from tl.models.preprocessing import Preprocessing
from tl.report.comparison import write_comparison
from tl.report.page import write_page
from tl.report.pictures import Pictures
from tl.report.record import Record, read_run
from tl.tracking.tracker import REPORT

COMPARISON = "comparison.html"


def report(run_dirs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of a run, or that of a comparison; returns where.

    Raises:
        UserError: no run, files in it that no run writes, or a page that cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in run_dirs}.values())
    records = [read_run(folder) for folder in folders]
    pictures = [pictures_of(record) for record in records]
    path = output or (folders[0] / REPORT if len(folders) == 1 else Path(COMPARISON))
    try:
        if len(records) == 1:
            write_page(records[0], pictures[0], path)
        else:
            write_comparison(records, pictures, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Give another --output") from error
    return path


def pictures_of(record: Record) -> Pictures:
    """The images of a run that is over, if they are where they were."""
    try:
        preprocessing = Preprocessing.from_dict(record.facts["preprocessing"])
        config = request(record.run_dir, []).config
        source = open_source(config.data, config.seed, cache_folder(config.cache) / "index")
    except KeyError:
        return Pictures(why_not="There are no pictures: the run has kept too little for them.")
    except UserError as error:
        return Pictures(why_not=f"There are no pictures: {error}")
    if list(source.classes) != record.classes:
        return Pictures(why_not="There are no pictures: the data has other classes by now.")
    return Pictures(source, preprocessing)
