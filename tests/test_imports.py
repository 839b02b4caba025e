"""Imports run one way, and what answers a mistyped key at once imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down; a unit (a package, or a module of tl itself) imports from those below its own
# line only. A new one has to be given its place here.
LAYERS = [
    {"launch"},
    {"export"},
    {"engine", "slurm"},
    {"report"},
    {"objectives", "tracking"},
    {"data", "freeze_plan"},
    {"freezing", "ema"},
    {"models", "optim", "metrics", "label_free", "transferability", "domain_gap", "lr_curve"},
    {"config_help"},
    {"arguments"},
    {"phases", "mistakes", "paths", "cache_folder", "selection"},
    {"strategies"},
    {"config", "yaml12", "atomic", "file_lock", "cores", "command", "randomness", "heap"},
    {"errors"},
]
LAYER_OF = {unit: depth for depth, units in enumerate(LAYERS) for unit in units}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("tl", "launch")
    for path in sorted((ROOT / package).rglob("*.py"))
}
HEAVY = {"torch", "torchvision", "accelerate", "timm", "wandb", "sklearn", "matplotlib", "numpy"}


def imported(module: str, *, at_import: bool) -> Iterator[str]:
    """Names of modules that ``module`` imports; ``at_import`` leaves out what functions do."""
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield node.module
            # `from tl.models import zoo` imports the module tl.models.zoo.
            yield from (
                name for alias in node.names if (name := f"{node.module}.{alias.name}") in MODULES
            )
        elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def own(module: str, *, at_import: bool) -> set[str]:
    return {name for name in imported(module, at_import=at_import) if name in MODULES}


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "launch" or len(parts) == 1 else parts[1]


def test_every_module_has_a_layer() -> None:
    assert {unit_of(name) for name in MODULES} - {"tl"} <= set(LAYER_OF)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tl"])
def test_imports_run_one_way(module: str) -> None:
    above = LAYER_OF[unit_of(module)]
    wrong = {
        other
        for other in own(module, at_import=False) - {"tl"}
        if unit_of(other) != unit_of(module) and LAYER_OF[unit_of(other)] <= above
    }
    assert not wrong, f"{module} imports {wrong}, which are not below it"


def test_the_rule_sees_an_import_that_runs_the_wrong_way() -> None:
    assert LAYER_OF[unit_of("tl.engine.prepare")] < LAYER_OF[unit_of("tl.models.zoo")]
    assert "tl.models.zoo" in own("tl.engine.prepare", at_import=False)
    assert unit_of("launch.train") == "launch"


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: own(name, at_import=True) - {name} for name in MODULES}
    # A package's __init__ is run by whatever imports from the package: it is no edge of the graph.
    for name, others in graph.items():
        graph[name] = {other for other in others if not name.startswith(other + ".")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


LIGHT = [
    "tl.errors", "tl.yaml12", "tl.config", "tl.mistakes", "tl.strategies", "tl.phases", "tl.paths",
    "tl.arguments", "tl.config_help", "tl.command", "tl.engine.cache_command",
    *(name for name in MODULES if name.split(".")[0] == "launch"),
]  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_what_checks_a_config_imports_nothing_heavy(module: str) -> None:
    seen, waiting = set(), [module]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        names = set(imported(here, at_import=True))
        heavy = {name for name in names if name.split(".")[0] in HEAVY}
        assert not heavy, f"{module} imports {heavy} by way of {here}"
        waiting += names & set(MODULES)


def test_python_agrees_that_they_import_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
