"""`tl COMMAND …`: the same functions as the files beside this one."""

from __future__ import annotations

import importlib
import sys

from tl.errors import did_you_mean

COMMANDS = {
    "train": "transfer a pretrained network to your images",
    "evaluate": "accuracy, loss and confusion matrix of a run's model on a folder",
    "report": "a page on a run, or on several side by side",
    "interpolate": "weights between where a run started and where it ended (WiSE-FT)",
    "submit": "queue a run, or a sweep of runs, as a job of Slurm",
    "predict": "classes and probabilities for images",
    "export": "a run's model for ONNX Runtime, timm, Transformers or torch, checked on images",
    "rank": "which pretrained network, or which cut of one, suits your images",
    "find-lr": "a learning rate, by raising it until the loss does",
    "map": "pictures of two domains before and after adaptation",
    "doctor": "what this machine, or each node of a job, lacks to run, and how to mend it",
    "prefetch": "fetch the weights of a config, and pin them, for nodes without a network",
    "cache": "list or clear the features that runs keep",
    "sync": "send what Weights & Biases lacks of a run's record",
}
FILES = {"map": "domain_map"}
"""where the file of a command has another name"""


def main() -> int:
    """Dispatch to ``launch.COMMAND``; returns the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        file = FILES.get(name, name.replace("-", "_"))
        sys.argv = [f"tl {name}", *sys.argv[2:]]
        return importlib.import_module(f"launch.{file}").main(sys.argv[1:])
    listed = "\n".join(f"  {command:11} {what}" for command, what in COMMANDS.items())
    usage = f"usage: tl COMMAND …\n\n{listed}\n\ntl COMMAND --help says more."
    if name in ("-h", "--help"):
        print(usage)
        return 0
    print(f"error: no command {name!r}.{did_you_mean(name, COMMANDS)}\n\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
