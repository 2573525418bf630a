"""Which moves do the state machines allow? Draws their tables for Graphviz, beside this file.

Run it after a table was changed: `python docs/state-machines/draw.py`. To look at one:
`dot -Tsvg task.dot -o task.svg`.
"""

from collections.abc import Mapping
from pathlib import Path

from covey.gossip.executions import RUN_MOVES
from covey.gossip.task_state import MOVES

FIRST = {"task": ("queued",), "execution": ("fetching", "waiting")}


def draw(name: str, moves: Mapping[str, frozenset[str]]) -> str:
    """Return a table of moves as a Graphviz graph; states without a way out are doubly framed."""
    lines = [f"digraph {name} {{", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    lines += [f"  {state} [peripheries=2];" for state, after in moves.items() if not after]
    lines += ["  begin [shape=point];", *(f"  begin -> {state};" for state in FIRST[name])]
    lines += [f"  {state} -> {one};" for state, after in moves.items() for one in sorted(after)]
    return "\n".join([*lines, "}"]) + "\n"


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "task.dot").write_text(draw("task", MOVES))
    (folder / "execution.dot").write_text(draw("execution", RUN_MOVES))
