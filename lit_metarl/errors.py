"""From exceptions to one line that names the key and the remedy."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterable

_NOISE = re.compile(
    r"^(Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value|tip:)", re.IGNORECASE
)
COMMANDS = (
    "fit",
    "validate",
    "test",
    "predict",
    "sweep",
    "benchmark",
    "report",
    "compare",
    "study",
    "doctor",
    "completion",
)
OTHER_WORDS = {"train": "fit", "run": "fit", "resume": "fit", "eval": "validate", "evaluate": "validate"}
LISTED = 30  # names that are still read
ENVS = "lit_metarl.envs"
MOVED = {"lit_metarl.losses.tangent_kernel": "lit_metarl.diagnostics.kernels"}  # modules and classes, old → new
REPLACED = {
    "SGMRLCorrection": "SGMRLCorrection is four classes of lit_metarl.optim now: write LeaveOneOut, "
    "LinearisedLeaveOneOut (credit: first_order), CrossTask or Plain (credit: none).",
}
RENAMED = {
    "preconditioning_updates": "data.warmup_updates",
    "keep_random_transitions": "data.keep_warmup",
    "adapted": "model.adapted_parameters",
}
_ROOTS = {"model": "Algorithm", "data": "ExperienceDataModule", "callbacks": "Callback"}


def one_line(message: str) -> str:
    """Shorten a parser's nested message to the path of keys and the last reason.

    jsonargparse explains every type of a union in turn, the absent ``None`` included; what helps is one line of it.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if not _NOISE.match(line.strip())]
    keys: list[str] = []
    reasons: list[str] = []
    for line in lines:
        if match := re.match(r'^Parser key "([^"]+)":\s*(.*)$', line):
            keys.append(match[1])
            reasons += [match[2]] if match[2] else []
        elif match := re.match(r"^Problem with given class_path '([^']+)':\s*(.*)$", line):
            reasons += [match[2]] if match[2] else []
            name = f"({match[1].rpartition('.')[2]})"
            if keys[-1:] != [name]:
                keys.append(name)
        elif line and line not in reasons:
            reasons.append(line)
    path = ".".join(keys).replace(".(", "(")
    reason = re.sub(r"<class '([^']+)'>", r"\1", " ".join(reasons))
    return f"{path}: {reason}" if path else reason


def explain(message: str, options: Iterable[str] = ()) -> str:
    """One line for a parser's ``message``, with what was probably meant and what there is to choose from.

    Args:
        message: of jsonargparse.
        options: of the parser, ``--trainer.max_epochs`` and so on.
    """
    if moved := _moved(message):
        return moved
    line = one_line(message)
    key, _, reason = line.partition(": ")
    plain = re.sub(r"\(\w+\)", "", key)
    if match := re.search(r"Expected a dot import path string: (\S+)", reason):
        return f"{plain} = {match[1]} names no class.{_instead(match[1], _choices(key))}"
    if match := re.search(r"Option '([^']+)' is not accepted", reason):
        taker = key.rpartition("(")[2].rstrip(")")
        if match[1] in RENAMED:
            return f"{plain}.{match[1]} is called {RENAMED[match[1]]} now."
        # of a base, perhaps, which the class sets itself
        others = [name for name in _arguments(taker) if name != match[1]]
        return f"{plain}.{match[1]}: {taker} takes no {match[1]}.{_instead(match[1], others)}"
    if match := re.search(r"unrecognized arguments: (.*)", line):
        return f"{match[1]} is not understood.{_instead(match[1].partition('=')[0], list(options))}"
    if match := re.search(r"does not accept option '([^'.]+)", line):
        sections = ("seed_everything", "trainer", "model", "data", "ckpt_path")
        return f"{match[1]} is no section of a config.{_instead(match[1], sections)}"
    if "is abstract" in reason:
        return f"{plain} has no class yet. Name it first, --{plain} CLASS.{_instead('', _choices(key))}"
    if literals := re.findall(r"typing\.Literal\[([^\]]*)\]", reason):
        return f"{plain}: choose one of {', '.join(literals)}."
    if "are required: " in line and "model" in line:
        return "there is no model and no data: --config configs/experiment/quickstart.yaml, or another experiment."
    return line


def _moved(message: str) -> str:
    """The line for a class path in ``message`` that was right once; empty if there is none."""
    for old, new in MOVED.items():
        if match := re.search(rf"{re.escape(old)}\b[\w.]*", message):
            return f"{match[0]} has moved: write {new}{match[0].removeprefix(old)}."
    return next((sentence for old, sentence in REPLACED.items() if re.search(rf"\b{old}\b", message)), "")


def unknown_command(word: str) -> str:
    """The line for a ``word`` that is no command, with the one that was probably meant."""
    return f"{word} is no command.{_instead(OTHER_WORDS.get(word, word), COMMANDS)}"


def cause_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of ``kinds`` in the chain of causes: the parser wraps what a constructor raises."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, kinds):
        current = current.__cause__
    return current


def _instead(word: str, known: Iterable[str]) -> str:
    """Sentences that name the closest of ``known`` to ``word``, and all of them unless that is too much to read."""
    by_name = {path if "." in word else path.rpartition(".")[2]: path for path in known}
    close = difflib.get_close_matches(word, by_name, n=1, cutoff=0.6)
    meant = f" Did you mean {by_name[close[0]]}?" if close else ""
    return f"{meant} Choose from {', '.join(by_name.values())}." if 1 < len(by_name) <= LISTED else meant


def _classes() -> dict[str, type]:
    """All classes that the package has imported, by name."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("lit_metarl")]
    return {name: cls for module in modules for name, cls in vars(module).items() if isinstance(cls, type)}


def _choices(key: str) -> list[str]:
    """Classes that the setting ``key``, such as ``model(SAC).actor``, may have, as they are written there."""
    owner, _, name = key.rpartition(".")
    classes = _classes()
    bases = [classes[_ROOTS[name]]] if _ROOTS.get(name) in classes else []
    for cls in getattr(classes.get(owner.rpartition("(")[2].rstrip(")")), "__mro__", ()):
        own = cls.__module__.startswith("lit_metarl")
        hint = typing.get_type_hints(cls.__init__).get(name) if own else None
        bases += [each for each in (hint, *typing.get_args(hint)) if isinstance(each, type) and each is not type(None)]
    if any(base.__module__.startswith(ENVS) for base in bases):  # only those that are imported can be found
        for module in pkgutil.iter_modules(importlib.import_module(ENVS).__path__):
            importlib.import_module(f"{ENVS}.{module.name}")
    found = [cls for base in bases for cls in _subclasses(base)]
    shown = [cls for cls in found if not inspect.isabstract(cls) and not cls.__name__.startswith("_")]
    return sorted({f"{c.__module__}.{c.__name__}" if c.__module__.startswith(ENVS) else c.__name__ for c in shown})


def _subclasses(base: type) -> set[type]:
    below: list[type] = type.__subclasses__(base)
    return {*below, *(sub for cls in below for sub in _subclasses(cls))}


def _arguments(name: str) -> list[str]:
    """Arguments of the constructor of class ``name``, those that it passes on to its bases included."""
    skipped = {"self", "obs_dim", "action_dim", "num_actions", "context_dim", "action_scale"}
    names: list[str] = []
    for cls in getattr(_classes().get(name), "__mro__", ()):
        if "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in skipped]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))
