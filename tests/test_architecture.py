"""The structure holds: import direction, file and function sizes, no print, docstrings, a clean top level."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_metarl"
FILES = sorted(PACKAGE.rglob("*.py"))

# Part → parts it may import. What is absent (cli, doctor, __main__ …) stands on top and may import all.
MAY_IMPORT = {
    "types": set(),
    "config": {"types"},
    "errors": set(),
    "checkpoint": set(),
    "processes": {"types"},
    "settings": {"types"},
    "envs": {"types"},
    "nn": {"types"},
    "losses": {"types"},
    "estimators": {"types"},
    "diagnostics": {"types"},
    "optim": {"types", "estimators"},
    "data": {"types", "envs", "processes"},
    "algorithms": {"types", "nn", "losses", "estimators", "optim", "diagnostics", "processes", "settings"},
    "tracking": {"types"},
    "callbacks": {"types", "envs", "tracking", "algorithms", "data", "diagnostics", "checkpoint", "processes"},
    "policy": {"types", "nn", "checkpoint"},
    "sweep": {"types", "config", "checkpoint", "tracking", "settings"},
}
# Single files that join what the rest of their part does not know.
MAY_ALSO_IMPORT = {
    # Objectives of preconditioning are functions of the tangent kernel that NTKMonitor also shows: it has one home.
    "losses/preconditioning.py": {"diagnostics"},
    # How a policy is told its task is the networks' own convention; an inner loop follows it wherever it calls one.
    "optim/inner_loop.py": {"nn"},
    # The policy as MLflow's model: a file that MLflow writes and this package reads.
    "tracking/model.py": {"checkpoint", "policy"},
    # Estimates are compared with those of Loaded DiCE, unbiased for the Hessian.
    "callbacks/gradients.py": {"estimators"},
    # Estimates are judged in finite MDPs, whose exact values are in envs.tabular_exact: it knows no estimator, and
    # estimators know no MDP, so what needs both stands on both. No other file of diagnostics needs either.
    "diagnostics/enumeration.py": {"envs", "estimators"},
}
PURE = {"estimators", "losses", "nn", "diagnostics"}  # torch and types only
# Private names of third parties that have no public reading, by owner.
PRIVATE_OF_OTHERS = {
    "named tuples": {"_asdict", "_fields", "_replace"},  # public in all but name
    "argparse": {"_actions", "_action_groups", "_group_actions"},
    "dm_control": {"_step_limit", "_step_count", "_reset_next_step"},
    "Gymnasium": {"_np_random"},
    "jsonargparse": {"_option_string_actions", "_prepare_subcommand_parser"},
    "Lightning": {"_accelerator_connector", "_train_progress_bar", "_trainer"},
    "torch": {"_foreach_lerp_", "_linear_pointwise"},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def forbidden(part: str, modules: set[str]) -> set[str]:
    own = {m.split(".")[1] for m in modules if m.startswith("lit_metarl.")}
    return own - MAY_IMPORT[part] - {part}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in MAY_IMPORT:
        assert not forbidden(part, imports(path)) - MAY_ALSO_IMPORT.get(path.relative_to(PACKAGE).as_posix(), set())
    if part in PURE:
        third_party = {m.split(".")[0] for m in imports(path)} & {"lightning", "mujoco", "mlflow", "gymnasium"}
        assert not third_party
    if part == "reports":
        # Reports read MLflow; only benchmarks, whose subject training is, may touch it, and the studies that measure
        # an algorithm itself, not a second implementation: its meta-gradient, its critic, the time of its update.
        studies = (
            "baseline_bias",
            "critic_gradient",
            "gradient_quality",
            "gradient_samples",
            "inner_steps",
            "meta_gradient",
            "preconditioning",
        )
        training = {m for m in imports(path) if m.startswith(("lit_metarl.algorithms", "lit_metarl.data"))}
        assert path.parent.name == "benchmarks" or path.stem in studies or not training


def test_sweeps_stand_on_top() -> None:
    users = {part_of(path) for path in FILES if any(name.startswith("lit_metarl.sweep") for name in imports(path))}
    assert users == {"sweep", "reports", "__main__"}


def test_the_rule_can_fail() -> None:
    assert forbidden("algorithms", {"lit_metarl.envs.base"}) == {"envs"}
    assert forbidden("data", {"lit_metarl.algorithms"}) == {"algorithms"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring.count("\n")
            # A constructor lists and checks its arguments; anything else that long does two things.
            assert lines <= (70 if node.name == "__init__" else 45), f"{path.name}:{node.lineno} {node.name}"
            calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            assert path.name == "__main__.py" or all(call.func.id != "print" for call in calls)


def private_of_others(tree: ast.Module) -> set[str]:
    """Names with a leading underscore that a module imports, or reads of something it does not define itself."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            of_self = ast.unparse(node.value) in ("self", "cls")
            names |= set() if of_self and node.attr in own else {node.attr}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            names |= {part for module in modules for part in module.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            names |= {str(word.value) for word in node.args[1:2] if isinstance(word, ast.Constant)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_in_their_module(path: Path) -> None:
    assert private_of_others(ast.parse(path.read_text())) <= set().union(*PRIVATE_OF_OTHERS.values())


@pytest.mark.parametrize(
    "code", ["from a import _b", "from a._b import c", "import a._b", "a._b", "self._b", "a.c._b()", "getattr(a, '_b')"]
)
def test_private_names_of_others_are_found(code: str) -> None:
    assert private_of_others(ast.parse(code)) == {"_b"}
    assert not private_of_others(ast.parse("class A:\n  def _b(self):\n    self._c = self._b(); self.d.__dict__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_a_config_names_cannot_be_changed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            made = [text for text in map(ast.unparse, node.decorator_list) if text.startswith("dataclass")]
            assert all("frozen=True" in text for text in made), f"{path.name}:{node.lineno} {node.name}"


def public_definitions(tree: ast.Module) -> list[ast.AST]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds)]
    methods = [m for node in top if isinstance(node, ast.ClassDef) for m in node.body if isinstance(m, ast.FunctionDef)]
    return [node for node in top + methods if not node.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "module docstring"
    inherited = {"forward", "close", "load_state_dict", "state_dict", "reset", "step", "main", "build"}
    for node in public_definitions(tree):
        assert ast.get_docstring(node) or node.name in inherited, f"{path.name}:{node.lineno} {node.name}"


FRAGMENT = re.compile(r"(What|Of|The same|As|See)\b")


def of_attributes(tree: ast.Module) -> Iterator[str]:
    """Texts below assignments, in modules and classes."""
    for node in ast.walk(tree):
        body = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
        for before, after in itertools.pairwise(body):
            match before, after:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                    yield inspect.cleandoc(text)


def fragments(tree: ast.Module) -> list[str]:
    """First lines of public docstrings that are no whole sentence, or one that only points elsewhere."""
    texts = [*(ast.get_docstring(node) for node in (tree, *public_definitions(tree))), *of_attributes(tree)]
    openings = [text.splitlines()[0] for text in texts if text]
    return [line for line in openings if FRAGMENT.match(line) or not line.endswith(".")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_open_with_a_sentence(path: Path) -> None:
    assert not fragments(ast.parse(path.read_text()))


@pytest.mark.parametrize("line", ["What it does.", "See the base class.", "As a collector does.", "A sentence that"])
def test_fragments_are_found(line: str) -> None:
    method = 'class A:\n  @property\n  def b(self):\n    """{}"""'
    for code in ('"""{}"""', 'A = 1\n"""{}"""', 'class A:\n  """{}"""', method):
        assert fragments(ast.parse(code.format(line))) == [line]
        assert not fragments(ast.parse(code.format("Assets of a test, whole.")))


@pytest.mark.parametrize("part", ["losses", "estimators", "diagnostics"])
def test_every_formula_states_shapes_and_source(part: str) -> None:
    for path in (PACKAGE / part).glob("[a-z]*.py"):
        tree = ast.parse(path.read_text())
        source = ast.get_docstring(tree) or ""
        for node in public_definitions(tree):
            text = ast.get_docstring(node) or ""
            assert "[" in text, f"{path.name} {node.name}: shapes"
            assert "Eq." in text or "et al." in text or "Eq." in source, f"{path.name} {node.name}: source"


def test_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    visible = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert visible == {"pyproject.toml", "lit_metarl", "configs", "tests", "mlruns", "README.md"}
