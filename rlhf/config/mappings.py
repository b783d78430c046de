"""Settings that hold entries under names of the user's choice, such as `reward.sources.style.weight`."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


def setting_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every setting of a class of jobs; a mapping is one setting."""
    types: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            types |= setting_types(hints[item.name], f"{prefix}{item.name}.")
        else:
            types[prefix + item.name] = hints[item.name]
    return types


def is_mapping(hint: Any) -> bool:
    """Whether a setting of this type is a mapping."""
    return get_origin(hint) is dict


def mappings_of(kind: type) -> list[str]:
    """The dotted keys of a class of jobs that are mappings."""
    return [key for key, hint in setting_types(kind).items() if is_mapping(hint)]


def mapping_around(mappings: Iterable[str], key: str) -> str | None:
    """The mapping that a dotted key is or lies in."""
    return next((mapping for mapping in mappings if key == mapping or key.startswith(f"{mapping}.")), None)


def type_of(types: Mapping[str, Any], key: str) -> Any:
    """The type of a setting by its dotted key, inside mappings too; None where there is no such setting."""
    if key in types:
        return types[key]
    mapping = mapping_around((name for name, hint in types.items() if is_mapping(hint)), key)
    if mapping is None:
        return None
    item = get_args(types[mapping])[1]
    _, _, setting = key.removeprefix(f"{mapping}.").partition(".")
    if not is_dataclass(item):
        return item
    return type_of(setting_types(item), setting) if setting else item  # pyright: ignore[reportArgumentType]


def flatten(settings: Mapping[str, Any], prefix: str = "", leaves: Iterable[str] = ()) -> dict[str, Any]:
    """Nested settings as dotted key -> value.

    Args:
        leaves: dotted keys whose values stay as they are.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, f"{key}.", leaves) if isinstance(value, dict) and key not in leaves else {key: value}
    return flat


def take(
    settings: Mapping[str, Any], mappings: Iterable[str], prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested settings without the mappings, and the mappings' values by their dotted keys."""
    others: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in mappings:
            taken[key] = value
        elif isinstance(value, dict):
            others[name], inside = take(value, mappings, f"{key}.")
            taken |= inside
        else:
            others[name] = value
    return others, taken


def merge(earlier: Mapping[str, Any], later: Any) -> Any:
    """Later entries over earlier ones, name by name and setting by setting; null or {} removes what was there."""
    if not isinstance(later, dict):
        return {} if later is None else later
    merged = dict(earlier) if later else {}
    for name, value in later.items():
        before = merged.get(str(name))
        merged[str(name)] = (
            merge(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
        )
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as `{"a": {"b": value}}`."""
    name, _, rest = path.partition(".")
    return {name: nested(rest, value) if rest else value}
