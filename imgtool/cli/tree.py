"""Trees as virsh draws them, with a mark where we are."""

from __future__ import annotations

from collections.abc import Mapping

from imgtool.cli.visible import visible_line

CURRENT = " (current)"


def tree(parents: Mapping[str, str | None], *, current: str | None = None) -> str:
    """Draw names below their parents, siblings in the order of `parents`; mark the `current` one.

    A name whose parent is not among them is a root; so is one of a ring, which has none.
    """
    children: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent if parent in parents else None, []).append(name)
    lines: list[str] = []
    drawn: set[str] = set()
    for root in (*children.get(None, ()), *parents):
        if root not in drawn:
            lines += _below(root, children, drawn, current)
    return "\n".join(lines)


def _below(
    root: str, children: Mapping[str | None, list[str]], drawn: set[str], current: str | None
) -> list[str]:
    """One root's lines. A stack of its own: a chain of snapshots may be thousands deep."""
    lines: list[str] = []
    stack = [(root, "", "", True)]  # name, what leads its own line and its children's, last?
    while stack:
        name, lead, beneath, last = stack.pop()
        drawn.add(name)
        lines.append(lead + visible_line(name) + (CURRENT if name == current else ""))
        below = [child for child in children.get(name, ()) if child not in drawn]
        if below:
            lines.append(f"{beneath}  |")
        elif last:
            lines.append(beneath)
        indent = f"{beneath}  "
        for child in reversed(below):
            final = child == below[-1]
            bar = "  " if final else "| "
            stack.append((child, f"{indent}+- ", indent + bar, final))
    return lines
