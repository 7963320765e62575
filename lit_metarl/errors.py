"""From exceptions to one line that names the key and the remedy."""

from __future__ import annotations

import re

_NOISE = re.compile(
    r"^(Does not validate against|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value|tip:)", re.IGNORECASE
)


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
            keys.append(f"({match[1].rpartition('.')[2]})")
        elif line:
            reasons.append(line)
    path = ".".join(keys).replace(".(", "(")
    reason = re.sub(r"<class '([^']+)'>", r"\1", " ".join(reasons))
    return f"{path}: {reason}" if path else reason


def cause_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of ``kinds`` in the chain of causes: the parser wraps what a constructor raises."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, kinds):
        current = current.__cause__
    return current
