"""How a step's rows are divided among streams and cores. No torch: predictions of memory divide them alike.

Knows lengths alone. Refuses to know what is computed.
"""

from collections.abc import Sequence

# Own tokens of a stream above which longer ones are no quicker, and only take memory.
USUAL_STREAM = 2048
SHORTEST_STREAM = 384  # tokens; shorter ones do not pay for reading all weights once more
# Of all cores that one stream keeps busy: its products are split, what lies between them hardly is (measured on two).
SHARE_OF_CORES = 0.6


def a_stream_each(own: int, shared: int, *, cores: int) -> bool:
    """Whether a stream for each core is quicker than all cores on one: own tokens are divided, shared ones repeated."""
    apart, together = shared + own / cores, (shared + own) / (cores * SHARE_OF_CORES)
    return cores > 1 and apart <= together and own >= cores * SHORTEST_STREAM


def turns(own: int, *, token_budget: int, cores: int) -> int:
    """How often a stream for each core is computed until `own` tokens are done: as streams of about the usual length
    fit best, none above `token_budget`."""
    return max(1, round(own / (cores * USUAL_STREAM)), -(-own // max(1, token_budget * cores)))


def even_groups(lengths: Sequence[int], *, token_budget: int, multiple: int) -> list[list[int]]:
    """Groups of places in `lengths`, as many as a multiple of `multiple`, of about equal sums up to `token_budget`.

    Longest first, each into the group with the least so far. A row above the budget has a group of its own. Fewer rows
    than `multiple` give a group each. The same lengths always give the same groups.
    """
    places = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    count = multiple * turns(sum(lengths), token_budget=token_budget, cores=multiple)
    while True:
        groups: list[list[int]] = [[] for _ in range(min(count, len(places)))]
        sums = [0] * len(groups)
        for place in places:
            least = min(range(len(groups)), key=lambda group: (sums[group], group))
            groups[least].append(place)
            sums[least] += lengths[place]
        if all(total <= token_budget or len(group) == 1 for group, total in zip(groups, sums, strict=True)):
            return sorted(sorted(group) for group in groups)
        count += multiple
