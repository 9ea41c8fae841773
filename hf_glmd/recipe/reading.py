"""Values of dataclasses from YAML files and from the command line, converted and checked; the nearest key is named."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_glmd.errors import ACCESS_TOKEN, UsageError, nearest
from hf_glmd.recipe.examples import found_file, recipe_names, with_own_paths

Section = typing.TypeVar("Section")


def read_yaml(path: str | Path) -> dict[str, Any]:
    path = found_file(path)
    if not path.is_file():
        others = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        others += recipe_names()
        raise UsageError(
            f"recipe file '{path}' does not exist. " + (nearest(str(path), others) if others else "Give the path of a YAML file.")
        )
    try:
        text = path.read_text(encoding="utf-8")
        if ACCESS_TOKEN.search(text):
            raise UsageError(f"'{path}' holds an access token of the Hub. Take it out, and run `hf auth login` or set HF_TOKEN.")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe file '{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe file '{path}' holds no sections. See recipes/quickstart.yaml.")
    return data


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UsageError(f"'{word}' is not an option. Override a value with --section.key value, e.g. --vocab.size 0.25.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key} has no value. Write --{key} value.")
            text = rest.pop(0)
        try:
            pairs.append((key.replace("-", "_"), yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise UsageError(f"--{key}: '{text}' is not a YAML value. Put quotes around it.") from error
    return pairs


def set_value(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for number, parent in enumerate(parents):
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise UsageError(f"--{key}: '{'.'.join(parents[: number + 1])}' is a value, not a section.")
    data[leaf] = value


def converted(value: Any, hint: Any, path: str) -> Any:
    """`value` as `hint` wants it. Raises: UsageError, it is of another type."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return build(typing.cast(type, option), value, path)
        done, result = _fits(value, option, path)
        if done:
            return result
    names = " or ".join(_type_name(option) for option in options)
    raise UsageError(f"{path}={_shown(value)} is of type {type(value).__name__}, {names} is wanted.")


def _fits(value: Any, option: Any, path: str) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if option is Any:
        return True, value
    if option in (None, type(None)):
        return value is None, None
    if origin is typing.Literal:
        return value in arguments, value
    if option is bool or isinstance(value, bool):
        return isinstance(value, bool) and option is bool, value
    if option is float:
        # YAML 1.1 reads 1e-3, which everybody writes, as a string.
        try:
            number = float(value)
        except (ValueError, TypeError, OverflowError):
            return False, value
        if not math.isfinite(number):
            raise UsageError(f"{path}={_shown(value)} is not a finite number.")
        return True, number
    if option is int and isinstance(value, str):
        is_number = re.fullmatch("-?[0-9]{1,18}", value) is not None
        return is_number, int(value) if is_number else value
    if origin is list and isinstance(value, list):
        return True, [converted(item, arguments[0], f"{path}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return True, {_text_key(key): converted(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return False, value  # the `| str` beside it takes the value, and the Trainer checks it
    if isinstance(option, type):
        return isinstance(value, option), value
    return False, value


def _text_key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _type_name(option: Any) -> str:
    return (
        "null"
        if option is type(None)
        else getattr(option, "__name__", str(option))
        if typing.get_origin(option) is None
        else str(option)
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def section_of(hint: Any) -> type | None:
    return next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)


def build(section: type, data: Any, path: str, known_keys: Callable[[], Iterable[str]] = tuple) -> Any:
    """A dataclass out of a mapping; `path` is where it stands in the file."""
    if not isinstance(data, Mapping):
        keys = ", ".join(part.name for part in dataclasses.fields(section))
        raise UsageError(f"{path} is {_shown(data)}, a section with the keys {keys} is wanted.")
    hints = typing.get_type_hints(section)
    prefix = f"{path}." if path else ""
    for name in data:
        if name not in hints:
            known = {f"{prefix}{hint}" for hint in hints} | (set(known_keys()) if not path else set())
            raise UsageError(f"unknown key '{prefix}{name}'. {nearest(f'{prefix}{name}', known)}")
    values = {name: converted(value, hints[name], prefix + name) for name, value in data.items()}
    missing = [
        f"{prefix}{f.name}"
        for f in dataclasses.fields(section)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is missing. {section.__dataclass_fields__[missing[0].split('.')[-1]].metadata['help']}"
        )
    return section(**values)


def build_section(section: type[Section], path: str | Path | None = None, values: Mapping[str, Any] | None = None) -> Section:
    """A dataclass from a YAML file, from values, or from both; the values win.

    Args:
        section: the dataclass.
        path: YAML file. None: there is none.
        values: name of a field -> its value, or a text that can be read as one.
    Raises: UsageError, there is no such file, or a key or value is wrong; the nearest valid key is named.
    """
    return build(section, with_own_paths((read_yaml(path) if path is not None else {}) | dict(values or {})), "")
