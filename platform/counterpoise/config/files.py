"""Experiment files: found by path or name, read, and merged over the files that they extend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from counterpoise.config.trees import Sources, Tree, key_paths, merge
from counterpoise.errors import ConfigError, did_you_mean

CONFIGS = Path(__file__).parents[1] / "configs"  # a link to the checkout's configs/, which a wheel holds as files


def beside(path: str, room: str, key: str) -> tuple[Path, Any]:
    """A file, here or in a room of ``configs/``, and what it says under a key that is no part of an experiment."""
    file = find_file(path, Path(), room)
    return file, read_tree(file, ())[0].get(key, {})


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def find_file(name: str, beside: Path, room: str) -> Path:
    """The file called ``name`` beside another one, or in ``configs/``, with or without its suffix."""
    tried = []
    for folder in (beside, CONFIGS, CONFIGS / room):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
            tried.append(candidate)
    near = did_you_mean(Path(name).stem, [path.stem for path in (CONFIGS / room).glob("*.yaml")])
    raise ConfigError(
        "there is no such file", where=name, found=f"nothing at {tried[0]}", remedy=near or "check the path"
    )


def read_tree(file: Path, chain: tuple[Path, ...]) -> tuple[Tree, Sources]:
    """A file merged over the files that it extends, and where each key came from."""
    if file.resolve() in chain:
        raise ConfigError("files extend each other in a circle", where=file, found=" → ".join(p.name for p in chain))
    try:
        own = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("this is not a YAML file", where=file, found=" ".join(str(error).split())) from error
    except OSError as error:
        raise ConfigError("this file cannot be read", where=file, found=error) from error
    if not isinstance(own, dict):
        raise ConfigError("an experiment file is a mapping of keys to values", where=file, found=type(own).__name__)
    extends = own.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise ConfigError("`extends` takes a file name or a list of them", where=f"{file}: extends", found=extends)
    tree: Tree = {}
    sources: Sources = {}
    for name in parents:
        parent, where = read_tree(find_file(name, file.parent, ""), (*chain, file.resolve()))
        merge(tree, parent, sources, where)
    merge(tree, own, sources, dict.fromkeys(key_paths(own), str(file)))
    return tree, sources
