"""Lines of Python for model cards: how an image file becomes the network's input."""

from __future__ import annotations

from tl.models.preprocessing import Preprocessing


def view_lines(preprocessing: Preprocessing, normalised: bool = True) -> list[str]:
    """Lines that make ``images`` (1, channels, S, S) of image.jpg, with torchvision.

    They use ``torch``, ``config`` (of config.json), Pillow's ``Image`` and torchvision's ``v2``.
    Not ``normalised`` they are uint8.
    """
    mode = "L" if preprocessing.channels == 1 else "RGB"
    steps = ["v2.Resize(p['resize_size'], v2.InterpolationMode(p['interpolation']))"]
    steps += ["v2.CenterCrop(p['crop_size'])", "v2.PILToTensor()"]
    if normalised:
        steps += ["v2.ToDtype(torch.float32, scale=True)", "v2.Normalize(p['mean'], p['std'])"]
    return [
        "p = config['preprocessing']",
        f"view = v2.Compose([{', '.join(steps[:2])},",
        f"                   {', '.join(steps[2:])}])",
        f"images = view(Image.open('image.jpg').convert({mode!r}))[None]",
    ]
