"""Experiment files: look-up by path or name, reading, and merging over the files that they extend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from counterpoise.config.trees import Sources, Tree, key_paths, merge
from counterpoise.errors import ConfigError, did_you_mean

CONFIGS = Path(__file__).parents[1] / "configs"  # a link to the checkout's configs/; plain files in a wheel


def read_section(path: str, folder: str, key: str) -> tuple[Path, Any]:
    """Find a file here or in a folder of ``configs/``; return it and its section that is no part of an experiment."""
    file = find_file(path, Path(), folder)
    return file, read_tree(file, ())[0].get(key, {})


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys instead of silently dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def find_file(name: str, base: Path, folder: str) -> Path:
    """Find the file ``name`` in ``base``, in ``configs/`` or in its ``folder``, with or without its suffix."""
    tried = []
    for place in (base, CONFIGS, CONFIGS / folder):
        for candidate in (place / name, place / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
            tried.append(candidate)
    near = did_you_mean(Path(name).stem, [path.stem for path in (CONFIGS / folder).glob("*.yaml")])
    raise ConfigError("file not found", where=name, found=f"nothing at {tried[0]}", remedy=near or "check the path")


def read_tree(file: Path, chain: tuple[Path, ...]) -> tuple[Tree, Sources]:
    """Read a file, merged over the files that it extends, and the source of each key."""
    if file.resolve() in chain:
        raise ConfigError("files extend each other in a cycle", where=file, found=" → ".join(p.name for p in chain))
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("this is not a YAML file", where=file, found=" ".join(str(error).split())) from error
    except OSError as error:
        raise ConfigError("this file cannot be read", where=file, found=error) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigError("an experiment file must be a mapping of keys to values", where=file, found=found)
    extends = content.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise ConfigError("`extends` takes a file name or a list of them", where=f"{file}: extends", found=extends)
    tree: Tree = {}
    sources: Sources = {}
    for name in parents:
        parent, where = read_tree(find_file(name, file.parent, ""), (*chain, file.resolve()))
        merge(tree, parent, sources, where)
    merge(tree, content, sources, dict.fromkeys(key_paths(content), str(file)))
    return tree, sources
