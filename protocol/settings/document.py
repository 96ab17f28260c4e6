"""A YAML text: its value, and the lines on which its parts stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

__all__ = ["Document"]


class Document:
    """`text`, read once. Raises `yaml.YAMLError`, which names `source` and the line."""

    def __init__(self, text: str, source: str) -> None:
        loader = yaml.SafeLoader(text)
        loader.name = source
        try:
            self._root = loader.get_single_node()
            self.twice = list(_twice(self._root, (), ()))
            """A sentence for each key that stands twice in one mapping: YAML's readers silently drop the first."""
            self.value: Any = None if self._root is None else loader.construct_document(self._root)
        finally:
            loader.dispose()

    def line(self, path: Sequence[str | int]) -> int:
        """The line, counted from 1, of the last part of `path` that is there."""
        node, line = self._root, 0
        for part in path:
            if isinstance(node, yaml.MappingNode):
                found = next((pair for pair in node.value if pair[0].value == str(part)), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
        return line + 1


def _twice(node: Any, path: tuple[str, ...], within: tuple[Any, ...]) -> Iterator[str]:
    if any(node is outer for outer in within):
        raise yaml.MarkedYAMLError(problem="an alias within what it stands for", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for key, value in node.value:
            name, line = key.value, key.start_mark.line + 1
            if isinstance(name, str) and name != "<<":
                if name in first:
                    where = ".".join((*path, name))
                    yield f"line {line}: {where}: stands here again, after line {first[name]}; keep one of them"
                first.setdefault(name, line)
            yield from _twice(value, (*path, str(name)), (*within, node))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _twice(item, (*path, str(i)), (*within, node))
