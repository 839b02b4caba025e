"""Keys of the images: where they are, which are used, how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tl.config.values import (
    Channels,
    ClassName,
    Colour,
    Keys,
    NonNegativeInt,
    PositiveInt,
)


class DataConfig(Keys):
    source: str = "auto"
    """`folder`, `digits`, `torchvision:NAME` or package.module:name; `auto`: `folder` if
    data.root is given, `digits` if not"""
    root: str | None = None
    """`folder`: the folder with train/ and val/, or with one folder for each class.
    `torchvision:`: where the files are"""
    source_root: str | None = None
    """domain adaptation: the folder of the labelled domain, another name of data.root"""
    target_root: str | None = None
    """domain adaptation: the folder of the domain without labels. Class folders in it, if there are
    any, are for reporting alone"""
    source_domains: Annotated[list[ClassName], Field(min_length=1)] | None = None
    """in place of source_root: names of folders in data.root, each a labelled domain"""
    target_domain: ClassName | None = None
    """in place of target_root: the name of a folder in data.root"""
    target_labels: Literal["auto", "none"] = "auto"
    """`auto`: by the names of class folders, where the target has such; `none`: it has none"""
    max_target: PositiveInt | None = None
    """keep this many images of the target, chosen by the seed"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """share of each class that is held out where the data has no validation part"""
    classes: list[ClassName] | None = None
    """keep these classes only, in this order"""
    train_per_class: PositiveInt | None = None
    """keep this many training images of each class, chosen by the seed"""
    max_train: PositiveInt | None = None
    """keep this many training images, chosen by the seed"""
    max_val: PositiveInt | None = None
    """keep this many validation images, chosen by the seed"""
    image_size: PositiveInt | None = None
    """side of the network's input in pixels; null: what the weights were trained with"""
    extensions: list[str] = [
        ".jpg",
        ".jpeg",
        ".png",
        ".ppm",
        ".bmp",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
    ]
    """`folder`: files that count as images; what else lies there is counted and named"""
    bad_images: Literal["error", "skip"] = "error"
    """an image that cannot be decoded ends the run, or is left out and named as its epoch ends"""
    max_bad_images: NonNegativeInt = 100
    """`skip`: more bad images than this end the run"""
    background: Colour = [255, 255, 255]
    """RGB colour behind transparent pixels"""
    decode: Literal["fast", "exact"] = "fast"
    """`fast`: a JPEG at least twice as large as the view needs it is decoded at a half, a quarter
    or an eighth of its size, which may move a colour by a few of its 255 levels; `exact`: always
    at its own size, as torchvision does. Other images are the same in both"""
    channels: Channels | None = None
    """1: grey, 3: RGB; null: as the weights were trained. The network's first convolution is
    adapted: for grey its kernels are summed, so a grey image gives what its RGB copy gives"""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """loader processes for each training process; null: from the cores of the node"""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.source_root is not None and self.root is not None:
            raise ValueError("give either root or source_root, which are the same")
        if self.source_domains is not None and self.source_root is not None:
            raise ValueError("give either source_root or source_domains")
        if self.target_domain is not None and self.target_root is not None:
            raise ValueError("give either target_root or target_domain")
        named = self.source_domains is not None or self.target_domain is not None
        if named and self.root is None:
            raise ValueError("source_domains and target_domain are folders in root: give root")
        if self.source_domains is None and self.target_domain is not None:
            raise ValueError("give source_domains with target_domain, as both are folders in root")
        return self

    @property
    def labelled_root(self) -> str | None:
        """The folder of what is labelled, by either of its names."""
        return self.root if self.source_root is None else self.source_root

    @property
    def has_target(self) -> bool:
        """Whether there is a domain to adapt to."""
        return self.target_root is not None or self.target_domain is not None

    @property
    def has_source(self) -> bool:
        """Whether there is anything labelled."""
        return self.labelled_root is not None or self.source != "auto" or not self.has_target
