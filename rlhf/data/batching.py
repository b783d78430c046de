"""Groups of texts of similar length that share a forward pass."""

from collections.abc import Sequence


def group_by_length(
    lengths: Sequence[int], max_rows: int, max_tokens: int | None = None, packed: bool = False
) -> list[list[int]]:
    """Row numbers in groups, longest texts first, so that running out of memory shows at once.

    Args:
        lengths: tokens of each row.
        max_rows: rows of a group, where `max_tokens` is None.
        max_tokens: tokens of a group, padding included; a longer row has a group of its own.
        packed: forward passes read rows without padding.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if max_tokens is None:
        return [order[start : start + max_rows] for start in range(0, len(order), max_rows)]
    groups: list[list[int]] = []
    tokens = 0
    for row in order:
        tokens += lengths[row] if packed or not groups else lengths[groups[-1][0]]
        if not groups or tokens > max_tokens:
            groups.append([])
            tokens = lengths[row]
        groups[-1].append(row)
    return groups
