"""Typed, frozen configuration: dotted overrides with errors that name the nearest right key, JSON, and a stable hash.

A recipe is a tree of frozen dataclasses whose leaves are `int`, `float`, `str`, `bool`, `None`, tuples of dataclasses
that have a `name`, or `dict[str, float]`. Nothing here knows what a recipe contains.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def to_jsonable(value: Any) -> Any:
    """A tree of dataclasses, mappings and sequences as plain JSON types; anything else is a `TypeError`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def from_jsonable(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `to_jsonable` wrote. Raises `ValueError` for a key that a dataclass does not have."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise ValueError(f"{kind.__name__} has no {key!r}; {nearest(key, hints)}")
        return kind(**{key: from_jsonable(hints[key], item) for key, item in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(from_jsonable(typing.get_args(kind)[0], item) for item in value)
    return value


def check_choices(config: Any, where: str = "") -> None:
    """Raises `ValueError` where a field of a tree of dataclasses that has a few choices (`Literal`) has none of them.

    A command line is held to them when it is parsed; JSON and Python are not.
    """
    hints = typing.get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), f"{where}{each.name}"
        arms = typing.get_args(hints[each.name]) if typing.get_origin(hints[each.name]) is not None else ()
        choices = _choices(hints[each.name])
        others = [arm for arm in arms if isinstance(arm, type) and typing.get_origin(arm) is None]
        if choices and value not in choices and not (others and isinstance(value, tuple(others))):
            raise ValueError(f"{name} = {value!r}: one of {', '.join(map(str, choices))}")
        for part in value if _holds_dataclasses(value) else [value]:
            if dataclasses.is_dataclass(part):
                inner = (
                    f"{name}.{part.name}."
                    if isinstance(value, tuple) and hasattr(part, "name")
                    else f"{name}."
                )
                check_choices(part, inner)


def _choices(kind: Any) -> tuple[Any, ...]:
    """What a `Literal`, alone or in a union, lets a field be."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(choice for arm in typing.get_args(kind) for choice in _choices(arm))
    return ()


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. What a hash is taken of."""
    return json.dumps(to_jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def nearest(wrong: str, known: typing.Iterable[str]) -> str:
    """A half-sentence for an error message: the nearest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing can be set here"


def parse_override(text: str) -> tuple[str, str]:
    """`"a.b=3"` as `("a.b", "3")`; a key may hold ">=" (`mix.books>=4096=0.4`)."""
    key, equals, value = re.sub(r"(?<!>)=", "\0", text, count=1).partition("\0")
    if not equals or not key.strip():
        raise ValueError(
            f"--set {text!r}: expected dotted.key=value, for example --set pretrain.learning_rate=1e-3"
        )
    return key.strip(), value.strip()


def override(config: T, key: str, text: str) -> T:
    """A copy of `config` with the leaf at the dotted `key` set to `text`, parsed by the field's type.

    A tuple's item is addressed by its `name` or its position (`pretrain.phases.phase1.tokens`). Raises `ValueError` for an
    unknown key (with the nearest right one) or a value of the wrong type.
    """
    return _override(config, key.split("."), text, key)


def _override(node: Any, path: list[str], text: str, whole: str) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(node, tuple):
        names = [str(getattr(item, "name", position)) for position, item in enumerate(node)]
        where = (
            names.index(head)
            if head in names
            else int(head)
            if head.isdigit() and int(head) < len(node)
            else None
        )
        if where is None:
            raise ValueError(f"--set {whole}: there is no {head!r} here; {nearest(head, names)}")
        if not rest:
            raise ValueError(f"--set {whole}: {head!r} is a group of settings; {_children(node[where])}")
        return node[:where] + (_override(node[where], rest, text, whole),) + node[where + 1 :]
    if isinstance(node, dict):
        if rest:
            raise ValueError(f"--set {whole}: nothing lies below {head!r}")
        return {**node, head: _parse(text, float, whole)}
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"--set {whole}: nothing lies below this setting")
    types_by_name = typing.get_type_hints(type(node))
    if head not in types_by_name:
        raise ValueError(f"--set {whole}: unknown key {head!r}; {nearest(head, types_by_name)}")
    value = getattr(node, head)
    if rest:
        changed = _override(value, rest, text, whole)
    elif dataclasses.is_dataclass(value) or isinstance(value, dict) or _holds_dataclasses(value):
        raise ValueError(f"--set {whole}: {head!r} is a group of settings; {_children(value)}")
    else:
        changed = _parse(text, types_by_name[head], whole)
    return dataclasses.replace(node, **{head: changed})


def _holds_dataclasses(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _children(node: Any) -> str:
    if isinstance(node, tuple):
        return "name one of " + ", ".join(str(getattr(item, "name", i)) for i, item in enumerate(node))
    names = list(node) if isinstance(node, dict) else [field.name for field in dataclasses.fields(node)]
    return "name one of " + ", ".join(names)


def _parse(text: str, kind: Any, whole: str) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        arms = typing.get_args(kind)
        if text.lower() in ("none", "null") and type(None) in arms:
            return None
        if text in _choices(kind):  # `auto` of a number
            return text
        kind = next(arm for arm in arms if arm is not type(None))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_parse(part.strip(), item, whole) for part in text.split(",") if part.strip())
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise ValueError(f"--set {whole}={text}: {nearest(text, choices)}")
        return text
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            number = float(text.replace("_", ""))
            if number != int(number):
                raise ValueError
            return int(text.replace("_", "")) if text.replace("_", "").lstrip("+-").isdigit() else int(number)
        if kind is float:
            return float(text)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"--set {whole}={text}: expected {kind.__name__}, got {text!r}") from None
    assert kind is str, f"a setting of type {kind} cannot be parsed from text"
    return text
