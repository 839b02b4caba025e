"""The weights that a config names: whether they are on this node, are what was pinned, and fit."""

from __future__ import annotations

from urllib.parse import urlsplit

from tl.arguments import Loaded
from tl.data.split import Source
from tl.engine.doctor.findings import Finding, note, ok, problem
from tl.engine.doctor.network import SECONDS, reached
from tl.engine.prefetch import own_file
from tl.engine.prepare import describe_weights, make_network
from tl.errors import UserError
from tl.models import pins, published, timm_models, zoo
from tl.paths import is_weights_path

_PREFETCH = (
    "`tl prefetch CONFIG` where there is a network, into a TORCH_HOME or HF_HOME that all see"
)


def weights(loaded: Loaded, source: Source | None) -> list[Finding]:
    """For one process of each node. Downloads nothing."""
    try:
        zoo.check_architecture(loaded.config.model.name)
        return _of(loaded, source)
    except UserError as error:
        return [problem("weights", str(error), "give other weights, or another model.name")]


def _of(loaded: Loaded, source: Source | None) -> list[Finding]:
    model = loaded.config.model
    for wish in model.reuse.graft:
        own_file(wish.weights, wish.weights_key)
    if model.weights is None:
        return [ok("weights", f"{model.name}, random")]
    where = ""
    if not is_weights_path(model.weights):
        file = published.kept_file(model.name, model.weights)
        if file is None:
            return [_to_download(model.name, model.weights)]
        where = f" ({file}, {'as pinned' if pins.pin_of(file).exists() else 'not pinned'})"
    if source is None:  # so it is not known for how many classes
        if is_weights_path(model.weights):
            own_file(model.weights, model.weights_key)
        else:
            published.fetch(model.name, model.weights, {})
        return [ok("weights", f"{model.name} {model.weights} can be read{where}")]
    _, _, report = make_network(loaded.config, source)
    first, *others = describe_weights(report).removeprefix("weights: ").split("\n")
    return [ok("weights", first + where), *(ok("weights", line.strip()) for line in others)]


def _to_download(architecture: str, name: str) -> Finding:
    url = address(architecture, name)
    text = f"{architecture} {name}: not on this node"
    if url is None:
        return problem("weights", f"{text}, and there is no address", "model.weights=FILE or null")
    host = urlsplit(url).hostname
    if reached(url):
        mend = f"a run will download it. For nodes without a network: {_PREFETCH}"
        return note("weights", f"{text}; {host} answers", mend)
    return problem("weights", f"{text}, and {host} does not answer in {SECONDS:.0f} s", _PREFETCH)


def address(architecture: str, name: str) -> str | None:
    """Where published weights are downloaded from."""
    if not timm_models.is_timm(architecture):
        return published.entry(architecture, name).url
    config = timm_models.pretrained_config(architecture)
    hub = config.get("hf_hub_id")
    return f"https://huggingface.co/{hub}" if hub else config.get("url")
