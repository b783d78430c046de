"""Decorators that compile the inner loops with numba, and the marker that keeps type checkers away from them."""

from typing import Any

from numba import njit

compiled: Any = njit(cache=True, error_model="numpy", _nrt=False)  # pyright: ignore
"""For functions that allocate nothing. Without numba's reference counts: they are atomic, come with every use of an
array, and take three quarters of the time in such loops. Add `typing.no_type_check` below it: the tests' run-time type
checker must not wrap what is compiled."""

compiled_with_allocation: Any = njit(cache=True, error_model="numpy")
"""For functions that make lists or arrays, which need the reference counts."""
