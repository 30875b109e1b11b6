"""Which beginnings of token streams have keys and values somewhere: a radix tree over blocks of tokens.

Knows tokens, adapters and numbers of owners; knows no memory. A beginning is found by comparing tokens, never by a hash
alone, so that a hit is exact. Keys and values depend on the adapter, so each adapter has a tree of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16


@dataclass(eq=False)
class _Node:
    """A block after its parent's. owners: whose tokens begin with the path to here, in order of arrival."""

    children: "dict[tuple[int, ...], _Node]" = field(default_factory=dict)
    owners: dict[int, None] = field(default_factory=dict)


@dataclass(eq=False)
class _Owner:
    tokens: list[int]
    adapter: str | None
    path: list[_Node] = field(default_factory=list)


class PrefixTree:
    """Owners by what their tokens begin with. An owner is any number that is not in use."""

    def __init__(self) -> None:
        self._roots: dict[str | None, _Node] = {}
        self._owners: dict[int, _Owner] = {}

    def extend(self, owner: int, adapter: str | None, tokens: Sequence[int], count: int) -> None:
        """Say that `owner` now holds tokens[:count], which begins with all that it held before."""
        known = self._owners.get(owner)
        if known is None:
            known = self._owners[owner] = _Owner([], adapter)
        known.tokens += tokens[len(known.tokens) : count]
        if count < BLOCK:
            return
        node = known.path[-1] if known.path else self._roots.setdefault(adapter, _Node())
        while (begin := len(known.path) * BLOCK) + BLOCK <= count:
            block = tuple(known.tokens[begin : begin + BLOCK])
            node = node.children.setdefault(block, _Node())
            node.owners[owner] = None
            known.path.append(node)

    def find(self, adapter: str | None, tokens: Sequence[int]) -> tuple[int, int]:
        """An owner that holds the longest known beginning of `tokens`, and its length; length 0 when there is none.

        Beginnings shorter than a block are not looked for.
        """
        node, depth = self._roots.get(adapter), 0
        while node is not None:
            below = node.children.get(tuple(tokens[depth * BLOCK : (depth + 1) * BLOCK]))
            if below is None:
                break
            node, depth = below, depth + 1
        if node is None or depth == 0:
            return 0, 0
        return max(((owner, self._shared(owner, tokens, depth * BLOCK)) for owner in node.owners), key=lambda f: f[1])

    def rename(self, owner: int, name: int) -> None:
        """Give an owner another number."""
        known = self._owners.pop(owner, None)
        if known is not None:
            self._owners[name] = known
            for node in known.path:
                del node.owners[owner]
                node.owners[name] = None

    def remove(self, owner: int) -> None:
        """Forget an owner; an unknown one is no error."""
        known = self._owners.pop(owner, None)
        if known is None or not known.path:
            return
        parents = [self._roots[known.adapter], *known.path[:-1]]
        for place in reversed(range(len(known.path))):
            node = known.path[place]
            del node.owners[owner]
            if not node.owners:
                del parents[place].children[tuple(known.tokens[place * BLOCK : (place + 1) * BLOCK])]
        if not self._roots[known.adapter].children:
            del self._roots[known.adapter]

    def _shared(self, owner: int, tokens: Sequence[int], least: int) -> int:
        held = self._owners[owner].tokens
        return least + common_length(held[least : least + BLOCK], tokens[least : least + BLOCK])


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(a), len(b))
    return next((place for place in range(shorter) if a[place] != b[place]), shorter)
