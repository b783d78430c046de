"""Blackjack as an exact MDP: an infinite deck, and a dealer who draws up to 17."""

from functools import cache

import numpy as np

from tabular.envs.table import Grid, TableEnv
from tabular.planning.mdp import Outcome

CARDS = {card: 4 / 13 if card == 10 else 1 / 13 for card in range(1, 11)}
"""Value of a card (1 is an ace, 10 also a face card) -> probability."""

STICK, HIT = 0, 1

Hand = tuple[int, bool]
"""Sum of the cards, and whether an ace counts 11 in it."""

LOWEST, TARGET, DEALER_STICKS = 4, 21, 17

STATES = tuple(
    (total, dealer, ace)
    for ace in (False, True)
    for total in range(12 if ace else LOWEST, TARGET + 1)
    for dealer in range(1, 11)
)
"""The player's sum, the dealer's visible card, and whether the player has a usable ace; in the order of the states."""


class Blackjack(TableEnv):
    """Actions stick (0) and hit (1); winning pays 1, losing -1, a draw 0. Gamma 1.

    The rules are those of gymnasium's Blackjack-v1 with its defaults, where a natural is an ordinary 21. There the
    dynamics are hidden in code; here they are a table. Sutton & Barto (2018), example 5.1; the optimal policy is that
    of figure 5.2. States are numbered as in `STATES`.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        table: dict[int, dict[int, list[Outcome]]] = {
            state: {STICK: _stick(state), HIT: _hit(state)} for state in range(len(STATES))
        }
        super().__init__(table, _start(), _grid(), render_mode)


def add_card(hand: Hand, card: int) -> Hand:
    """The hand with one more card; an ace counts 11 where that does not exceed 21."""
    total, usable_ace = hand
    total += card
    if card == 1 and not usable_ace and total + 10 <= TARGET:
        return total + 10, True
    if usable_ace and total > TARGET:
        return total - 10, False
    return total, usable_ace


@cache
def dealer_totals(hand: Hand) -> dict[int, float]:
    """Final sum of the dealer -> probability, from a hand; 0 stands for more than 21."""
    total, _ = hand
    if total > TARGET:
        return {0: 1.0}
    if total >= DEALER_STICKS:
        return {total: 1.0}
    totals: dict[int, float] = {}
    for card, probability in CARDS.items():
        for final, p in dealer_totals(add_card(hand, card)).items():
            totals[final] = totals.get(final, 0.0) + probability * p
    return totals


def _stick(state: int) -> list[Outcome]:
    total, dealer, _ = STATES[state]
    chances = {1.0: 0.0, 0.0: 0.0, -1.0: 0.0}
    for final, probability in dealer_totals(add_card((0, False), dealer)).items():
        chances[float(np.sign(total - final))] += probability
    return [(probability, state, reward, True) for reward, probability in chances.items()]


def _hit(state: int) -> list[Outcome]:
    total, dealer, ace = STATES[state]
    outcomes: list[Outcome] = []
    for card, probability in CARDS.items():
        new_total, new_ace = add_card((total, ace), card)
        if new_total > TARGET:
            outcomes.append((probability, state, -1.0, True))
        else:
            outcomes.append((probability, STATES.index((new_total, dealer, new_ace)), 0.0, False))
    return outcomes


def _start() -> np.ndarray:
    """Two cards for the player, one visible card of the dealer."""
    start = np.zeros(len(STATES))
    for first, p_first in CARDS.items():
        for second, p_second in CARDS.items():
            total, ace = add_card(add_card((0, False), first), second)
            for dealer, p_dealer in CARDS.items():
                start[STATES.index((total, dealer, ace))] += p_first * p_second * p_dealer
    return start


def _grid() -> Grid:
    """Two panels as in figure 5.2, without and with a usable ace: rows by player's sum, columns by dealer's card."""
    positions = tuple((TARGET - total, dealer - 1 + 11 * ace) for total, dealer, ace in STATES)
    cells = [["#"] * 21 for _ in range(TARGET - LOWEST + 1)]
    for row, column in positions:
        cells[row][column] = "."
    return Grid(tuple("".join(row) for row in cells), positions, "SH")
