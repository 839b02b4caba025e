"""What stands before the names in a checkpoint: ``module.``, ``backbone.``, ``encoder.``, …

One rule: of all that stands before names which the network has, that counts under which at least
half of the network's names are found, and of several the one with the most. Nothing counts as well,
and goes first. Where two have as many, the file holds two networks and somebody has to choose; but
of MoCo's two encoders it is the one that was trained by gradient, as in its own code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tl.errors import UserError, printable

# In MoCo (He et al., CVPR 2020) the key encoder follows the query encoder as a running mean.
_CHOSEN = ("encoder_q", "encoder_k")


def common_prefix(names: Iterable[str], wanted: Iterable[str], source: str) -> str:
    """What stands before the names that the network wants: ``"module."``, or ``""``.

    It is ``""`` too where nothing has half of the network's names under it.

    Raises UserError if the names stand under two prefixes alike.
    """
    wanted = set(wanted)
    depth = max((name.count(".") + 1 for name in wanted), default=0)
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(max(0, len(parts) - depth), len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    enough = {prefix: n for prefix, n in counts.items() if 2 * n >= len(wanted)}
    if not enough or "" in enough:
        return ""
    most = max(enough.values())
    best = sorted(prefix for prefix, n in enough.items() if n == most)
    if len(best) > 1:
        queries = [prefix for prefix in best if _CHOSEN[0] in prefix.split(".")]
        others = [prefix.replace(_CHOSEN[0], _CHOSEN[1]) for prefix in queries]
        if sorted([*queries, *others]) != best:
            keys = " or ".join(f"model.weights_key={printable(p)[:100].rstrip('.')}" for p in best)
            raise UserError(f"{source} holds {len(best)} networks that would fit: give {keys}.")
        best = queries
    return best[0]
