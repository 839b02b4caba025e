"""What goes with a graph, in which nothing says what its inputs and outputs mean."""

from __future__ import annotations

from typing import Any

from tl.models.saved import SavedModel


def config_of(model: SavedModel) -> dict[str, Any]:
    """Classes in the order of the outputs, preprocessing, and what the network was."""
    return {
        "classes": model.classes,
        "preprocessing": model.preprocessing.to_dict(),
        "architecture": model.network.architecture,
        "arguments": model.network.arguments,
    }
