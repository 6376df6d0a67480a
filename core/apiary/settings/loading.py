"""Read settings: file < `APIARY_*` environment < command line; an error says where a value came from."""

import contextlib
import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError, create_model

from apiary.errors import SettingsError
from apiary.settings.all import Settings
from apiary.text_files import read_text


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each dotted key that is not a default, where it came from."""

    settings: Settings
    origin: Mapping[str, str]


_FREE: Final = ("_options", ".tags", "by_round.epochs")
"""Tables whose keys the user chooses: one value, not a section."""


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read `file` (or `apiary.toml` of this folder, or APIARY_CONFIG), the environment and `overrides`.

    `overrides` maps dotted keys to values, from the command line. Raises SettingsError naming the key,
    where it came from, what came and what was expected.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    path = file or _default_file()
    if path is not None:
        _merge(merged, origin, _read_toml(path), str(path))
    _merge(merged, origin, _read_environment(), "environment")
    for key, value in (overrides or {}).items():
        if value is not None:
            _merge(merged, origin, _nest(key, value), "command line")
    try:
        return Loaded(Settings.model_validate(merged), origin)
    except ValidationError as e:
        raise SettingsError(_explain(e, origin)) from None


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key to value for every setting, secrets hidden."""
    out: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(f"{prefix}.{name}" if prefix else name, getattr(value, name))
        else:
            out[prefix] = str(value) if isinstance(value, Path | SecretStr) else value

    walk("", settings)
    return out


def to_toml(values: Mapping[str, Any]) -> str:
    """A settings file: `to_toml({"run.plan": {"epochs": 4}})`; a Path as text, None left out.

    Raises TypeError for a value that TOML does not have.
    """
    import tomli_w  # only who writes a file pays for it

    nested: dict[str, Any] = {}
    for key, value in values.items():
        _merge(nested, {}, _nest(key, value), "")
    return tomli_w.dumps(_plain(nested))


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {k: _plain(v) for k, v in value.items() if v is not None}
        case list() | tuple():
            return [_plain(v) for v in value]
        case Path():
            return str(value)
        case _:
            return value


def _default_file() -> Path | None:
    if named := os.environ.get("APIARY_CONFIG"):
        return Path(named)
    here = Path("apiary.toml")
    return here if here.is_file() else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, what="settings file"))
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"settings file {path} is not TOML: {e}") from None


def _read_environment() -> dict[str, Any]:
    known = set(Settings.model_fields)
    for key in os.environ:
        first = key.removeprefix("APIARY_").split("__")[0].lower()
        if key.startswith("APIARY_") and first not in known | {"config", "data", "log"}:
            raise SettingsError(f"environment: {key} names no setting{_near(first, known)}")
    try:
        values = _every_variable()
    except (ValidationError, ValueError) as e:
        raise SettingsError(f"environment: {e}") from None
    return {k: _with_lists(v) for k, v in values.items() if v is not None}


def _with_lists(value: Any) -> Any:
    """`value` with texts that are JSON lists as lists: `APIARY_EDGE__GUEST__HOURS='["22:00-06:00"]'`."""
    if isinstance(value, dict):
        return {k: _with_lists(v) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _every_variable() -> dict[str, Any]:
    # Here, not above: a child that is handed its settings must not pay 6 MB for reading the environment.
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="APIARY_", env_nested_delimiter="__", extra="ignore")

    kinds = {
        name: ((str if field.annotation is str else dict[str, Any]) | None, None)
        for name, field in Settings.model_fields.items()
    }
    every: Any = create_model("Environment", __base__=Environment, **kinds)  # type: ignore[call-overload]
    return EnvSettingsSource(every)()


def _merge(
    into: dict[str, Any], origin: dict[str, str], values: Mapping[str, Any], where: str, prefix: str = ""
) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and not dotted.endswith(_FREE):
            node = into.setdefault(key, {})
            if isinstance(node, dict):
                _merge(node, origin, value, where, f"{dotted}.")
                continue
        into[key] = value
        origin[dotted] = where


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _explain(e: ValidationError, origin: Mapping[str, str]) -> str:
    lines = []
    for error in e.errors(include_url=False):
        key = ".".join(str(p) for p in error["loc"])
        where = next((origin[k] for k in (key, *_parents(key)) if k in origin), "settings")
        if error["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown setting {key!r}{_near(key, set(flatten(Settings())))}")
        else:
            why = error["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {key} {_shown(error['loc'], error.get('input'))}: {why}")
    return "\n".join(lines)


def _shown(loc: tuple[int | str, ...], value: Any) -> str:
    """`is VALUE`; not where the value is a secret, or a table that may hold one."""
    if isinstance(value, Mapping) or _is_secret(loc):
        return "does not hold"
    return f"is {value!r}"


def takes_text(key: str) -> bool:
    """Whether the setting with this dotted key is a text, a path or a secret: `12` is then no number."""
    kinds = {k for k in _kinds(key.split(".")) if k is not type(None)}
    return bool(kinds) and all(isinstance(k, str) or k in (str, Path, SecretStr) for k in kinds)


def _is_secret(loc: tuple[int | str, ...]) -> bool:
    return any(SecretStr in _kinds(loc[: i + 1]) for i in range(len(loc)))


def _kinds(loc: Sequence[int | str]) -> tuple[Any, ...]:
    """The types that the setting at `loc` may have, a Literal as its values; none where there is none."""
    model: type[BaseModel] | None = Settings
    kinds: tuple[Any, ...] = ()
    for name in loc:
        field = model.model_fields.get(str(name)) if model is not None else None
        if field is None:
            return ()
        choice = get_origin(field.annotation) in (Union, UnionType, Literal)
        found = get_args(field.annotation) if choice else (field.annotation,)
        kinds = tuple(get_args(k)[0] if get_origin(k) is Annotated else k for k in found)
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return kinds


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _near(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]!r}?"
        if near
        else f". There are: {', '.join(sorted(known))}"
        if len(known) < 12
        else ""
    )
