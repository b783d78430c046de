"""Settings: what they are, their values' checks, and their way from files and options to dataclasses and back.

Every setting has its default, its type and its help text in one place, a field of a frozen dataclass. May import
`rlhf.errors` and `tabular.core.checks`; the command-line library is imported in `parsing.py` only, when it is needed.
"""
