"""What a run of domain adaptation needs of its data and its weights, looked at before it trains."""

from __future__ import annotations

from tl.arguments import Loaded
from tl.data.split import Source, Split
from tl.engine.state import streams_of
from tl.errors import UserError
from tl.mistakes import blamed_on
from tl.models.load_report import LoadReport
from tl.models.network import Network, head_parameters

_OF_LABELS = {"label_smoothing": 0.0, "class_weights": "none", "focal": 0.0, "sampling": "uniform"}
"""keys of a phase that say nothing without labels, and what each is then"""


def check_domains(loaded: Loaded, source: Source) -> None:
    """Raise UserError for a phase whose objective needs images that there are not; cheap."""
    for i, phase in enumerate(loaded.phases):
        streams = streams_of(phase)
        with blamed_on(loaded.origins, "phases", i, "objective"):
            if "source" in streams and not source.is_labelled:
                raise UserError(
                    f"objective={phase.objective} needs labelled images, and there is a target "
                    "alone. Give data.source_root, or an objective that goes without: shot"
                )
            if {"target", "strong"} & set(streams) and source.target is None:
                raise UserError(
                    f"objective={phase.objective} adapts to a domain without labels, and there is "
                    "none. Give data.target_root=FOLDER, or data.target_domain with "
                    "data.source_domains"
                )
        for key in ("mixup", "cutmix"):
            if streams != ("source",) and getattr(phase, key):
                with blamed_on(loaded.origins, "phases", i, key):
                    raise UserError(
                        f"{key} mixes labelled images, and objective={phase.objective} has others: "
                        f"give {key}=0"
                    )
        for key, without in _OF_LABELS.items():
            if "source" not in streams and getattr(phase, key) != without:
                with blamed_on(loaded.origins, "phases", i, key):
                    raise UserError(
                        f"{key} is about labels, and objective={phase.objective} has none: give it "
                        f"to the run, or the phase, that trains on the source, and here {key}="
                        f"{without}"
                    )
    metric = loaded.config.chosen_best.metric
    missing = {
        "val/": source.is_labelled,
        "target/": source.target is not None,
        "oracle/": source.target is not None and isinstance(source.target.test, Split),
    }
    for start, there in missing.items():
        if metric.startswith(start) and not there:
            with blamed_on(loaded.origins, "best", "metric"):
                raise UserError(
                    f"best.metric={metric}: this run has no images that it could be measured on"
                )


def check_head(loaded: Loaded, network: Network, report: LoadReport) -> None:
    """Raise UserError if a phase without labels begins with a head that nothing has trained."""
    new = sorted(head_parameters(network) & set(report.new))
    for i, phase in enumerate(loaded.phases):
        if "source" in streams_of(phase) or not new:
            return  # from here on it is trained
        with blamed_on(loaded.origins, "phases", i, "objective"):
            raise UserError(
                f"objective={phase.objective} adapts a model that was trained on the source, and "
                f"the head of this one ({new[0]}) is new. Give model.weights=RUN, the folder of "
                "the run that trained it, for the same classes; or a phase before this one that "
                "trains on data.source_root"
            )
