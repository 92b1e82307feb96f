"""Settings: YAML files to frozen objects, with every mistake named at once.

A config file may extend parts (`extends: [parts/ddp]`), a command line may override single values
(`lr.peak=0.1 stages.1.px=224`), and pydantic turns the result into the frozen `Spec` objects that
everyone else uses. OmegaConf is an implementation detail of this file.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Misuse(ValueError):
    """A mistake of the caller: the message names file, field, value and remedy (exit code 2)."""


class Failure(RuntimeError):
    """Something outside went wrong (disk, server, file): the message names it (exit code 1)."""


class Spec(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical JSON form; equal settings, equal digest."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Check `values` and build the object; `source` is named in errors.

        Raises:
            Misuse: lists every wrong field with its path, value and what is expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise Misuse(_explain(error, source)) from None


def canonical_json(values: Any) -> str:
    """JSON with sorted keys and no spaces: the form that digests are taken of."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def load(
    path: Path, overrides: Sequence[str] = (), words: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Read a config file, follow its `extends:` and apply `key.sub=value` overrides.

    `words` names the main key of sections that may be one plain word: with {"data": "path"} and
    `data: digits` in the file, `data.eval=test` adds to {path: digits}.

    Raises:
        Misuse: the file is missing or not YAML, a key stands twice, a part extends itself, or an
            override is not of the form `key=value`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(_protect(_compose(Path(path), ())))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise Misuse(f"override '{override}': expected key=value, for example lr.peak=0.1")
        try:
            value = _parse_yaml(text, f"override '{override}'")
            section, dot, _ = key.partition(".")
            if dot and section in (words or {}) and isinstance(tree.get(section), str):
                tree[section] = {(words or {})[section]: tree[section]}
            OmegaConf.update(tree, key, _protect(value), merge=False, force_add=True)
        except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Misuse(f"override '{override}': {reason}; `plan` shows the valid keys") from None
    values = _unprotect(OmegaConf.to_container(tree, resolve=False))
    assert isinstance(values, dict)
    return values


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `top` over `base`; a mapping that names another `kind` replaces instead of merging."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other_kind = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if other_kind else merge(old, value)
        else:
            merged[key] = value
    return merged


def dump(values: Mapping[str, Any]) -> str:
    """Write settings as YAML text that `load` reads back to the same values."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name each setting that differs, as lines `path: old -> new`."""
    lines: list[str] = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _compose(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        chain = " > ".join(p.name for p in (*seen, path))
        raise Misuse(f"{path}: field 'extends' goes in a circle ({chain}); remove one of them")
    values = _read(path)
    extends = values.pop("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Misuse(f"{path}: field 'extends' is {extends!r}; expected a list of part names")
    merged: dict[str, Any] = {}
    for name in names:
        part = path.parent / (name if name.endswith(".yaml") else f"{name}.yaml")
        if not part.is_file():
            raise Misuse(f"{path}: field 'extends' names '{name}', but {part} does not exist")
        merged = merge(merged, _compose(part, (*seen, path)))
    return merge(merged, values)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise Misuse(f"{path}: no such config file; there are: {near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{path}: cannot be read: {error}") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise Misuse(f"{path}: expected 'key: value' lines at the top, found {type(values)}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice and reads 1e-3 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice (line {line}); remove one"
                )
            seen.add(key if isinstance(key, str | int) else None)
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


_StrictLoader.add_constructor("tag:effnet,2026:exponent", _number)
_StrictLoader.add_implicit_resolver(
    "tag:effnet,2026:exponent",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise Misuse(f"{source}:{where} is not valid YAML: {problem}") from None


_MARK = "\ue000"


def _protect(values: Any) -> Any:
    """Hide `${` from OmegaConf, so that no environment secret can reach a recorded recipe."""
    if isinstance(values, dict):
        return {key: _protect(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_protect(value) for value in values]
    return values.replace("${", _MARK) if isinstance(values, str) else values


def _unprotect(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _unprotect(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_unprotect(value) for value in values]
    return values.replace(_MARK, "${") if isinstance(values, str) else values


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            lines.append(f"{source}: field '{path}' is unknown; remove it or correct the name")
        elif item["type"] == "missing":
            lines.append(f"{source}: field '{path}' is missing; add it")
        elif item["type"] == "union_tag_not_found":
            lines.append(f"{source}: field '{path}' does not say its kind; add {path}.kind=...")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{source}: {_shown(path, item)}{message}")
    return "\n".join(lines)


def _shown(path: str, item: ErrorDetails) -> str:
    """Return field and value before a message; what settles several fields names them itself."""
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        return f"field '{path}': " if item["loc"] else ""
    return f"field '{path}' is {item['input']!r}: "
