"""YAML that remembers where everything stood, so that an error can name file:line:column.

Differences from PyYAML's ``safe_load``: a repeated key is an error, ``1e-5`` is a number (YAML
1.2), dates stay text, and an alias is the same object as its anchor, so that a change to one
is seen through the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Set, Tuple, cast

import yaml

from orchestrator.errors import Location
from orchestrator.problems import Problems, shown

Path = Tuple[str, ...]
"""Keys and list indices that lead to a value: ``("callbacks", "0", "type")``."""

_MOST_NODES = 100_000
"""A document with more values than this, aliases followed, is an attack or an accident."""


@dataclass(frozen=True)
class Document:
    """A loaded YAML document: its value, and the place of every value in it."""

    value: object
    locations: Mapping[Path, Location]

    def place(self, path: Path) -> Optional[Location]:
        """Place of the value at ``path``, or of the nearest thing around it."""
        while path not in self.locations and path:
            path = path[:-1]
        return self.locations.get(path)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the differences named above."""


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which YAML 1.1 or 1.2 would read as a number or date."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """PyYAML writes these line breaks of YAML 1.1 as they are, and then misreads them."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def compose(text: str, filename: str, problems: Problems) -> Optional[yaml.Node]:
    """Parse ``text`` into nodes with positions: merge keys resolved, repeated keys reported.

    Returns None when the document is empty or could not be parsed (then ``problems`` says why).
    """
    loader = _loader(text, filename, problems)
    if loader is None:
        return None
    try:
        node = loader.get_single_node()
        if node is None:
            problems.add("the file is empty", Location(filename))
            return None
        _prepare(node, loader, filename, problems)
    except yaml.MarkedYAMLError as error:
        _explain(error, text, filename, problems)
        return None
    except RecursionError:
        problems.add("nested too deeply, or an alias contains itself", Location(filename))
        return None
    return node


def load(text: str, filename: str, problems: Problems) -> Optional[Document]:
    """Parse ``text`` into a value with positions; None if that failed (see ``compose``)."""
    node = compose(text, filename, problems)
    return None if node is None else document(node, filename, problems)


def document(node: yaml.Node, filename: str, problems: Problems) -> Optional[Document]:
    """Value and positions of a composed ``node``; None if a scalar in it is malformed."""
    loader = _Loader("")
    locations: Dict[Path, Location] = {}
    values: Dict[int, object] = {}

    def build(node: yaml.Node, path: Path) -> object:
        locations[path] = place(node, filename)
        known = values.get(id(node))
        value: object
        if isinstance(node, yaml.MappingNode):
            mapping = cast("Dict[object, object]", {} if known is None else known)
            values[id(node)] = mapping
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node)
                mapping[key] = build(value_node, (*path, str(key)))
            value = mapping
        elif isinstance(node, yaml.SequenceNode):
            items = [build(item, (*path, str(i))) for i, item in enumerate(node.value)]
            value = values.setdefault(id(node), items)
        else:
            value = loader.construct_object(node)
        return value

    try:
        return Document(build(node, ()), locations)
    except yaml.MarkedYAMLError as error:
        _explain(error, "", filename, problems)
    except ValueError as error:  # PyYAML lets e.g. an integer of "0x" through to int()
        problems.add(f"malformed value: {error}", place(node, filename))
    return None


def place(node: yaml.Node, filename: str, offset: int = 0) -> Location:
    """Location of ``node``; ``offset`` characters into its text where that is on one line."""
    mark = node.start_mark
    if offset and isinstance(node, yaml.ScalarNode) and mark.line == node.end_mark.line:
        offset += 1 if node.style in ("'", '"') else 0
    else:
        offset = 0
    return Location(filename, mark.line + 1, mark.column + 1 + offset)


def parse_scalar(text: str) -> object:
    """A value as it would be read from YAML: ``4`` is a number, ``[1, 2]`` a list.

    Raises ValueError with a sentence when ``text`` is not YAML.
    """
    problems = Problems()
    if not text.strip():
        return ""
    loaded = load(text, "value", problems)
    if loaded is None:
        raise ValueError(problems.found[0].message)
    return loaded.value


def dump(value: object) -> str:
    """YAML text of ``value``: keys in their order, shared objects as anchors, stable bytes."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000, indent=2
    )


def _loader(text: str, filename: str, problems: Problems) -> Optional[_Loader]:
    try:
        return _Loader(text)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        problems.add(
            f"character {shown(text[error.position : error.position + 1])} is not allowed in YAML",
            Location(filename, before.count("\n") + 1, len(before) - before.rfind("\n")),
            "remove it",
        )
        return None


def _prepare(root: yaml.Node, loader: _Loader, filename: str, problems: Problems) -> None:
    """Report repeated and non-scalar keys, resolve ``<<``, refuse cycles and alias bombs."""
    ready: Set[int] = set()
    active: Set[int] = set()
    sizes: Dict[int, int] = {}

    def visit(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in active:
            raise yaml.MarkedYAMLError(
                problem="an alias contains itself", problem_mark=node.start_mark
            )
        active.add(id(node))
        children: List[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, filename, problems)
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        size = 1 + sum(visit(child) for child in children)
        if size > _MOST_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MOST_NODES} values", problem_mark=node.start_mark
            )
        active.discard(id(node))
        sizes[id(node)] = size
        return size

    def flatten(node: yaml.Node) -> None:
        if id(node) in ready:
            return
        ready.add(id(node))
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            for _, value in node.value:
                flatten(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                flatten(item)

    visit(root)
    flatten(root)


def _check_keys(node: yaml.MappingNode, filename: str, problems: Problems) -> None:
    first: Dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a key must be plain text", problem_mark=key.start_mark
            )
        if key.value in first:
            line = first[key.value].start_mark.line + 1
            problems.add(
                f"key {shown(key.value)} is given twice, first in line {line}",
                place(key, filename),
                "remove one of them",
            )
        first.setdefault(key.value, key)


_RANGE = re.compile(r"[\[(]\s*\d+\s*,\s*\d+\s*\)")


def _explain(error: yaml.MarkedYAMLError, text: str, filename: str, problems: Problems) -> None:
    """Say in a user's words what PyYAML stumbled over."""
    mark = error.problem_mark or error.context_mark
    what = error.problem or "not valid YAML"
    hint = ""
    lines = text.splitlines()
    if error.context_mark is not None and error.context_mark.line < len(lines):
        opened = lines[error.context_mark.line]
        found = _RANGE.search(opened, max(error.context_mark.column, 0))
        if "flow sequence" in (error.context or "") and found:
            mark, what = error.context_mark, "a half-open range must be quoted in YAML"
            hint = f'write "{found.group()}"'
    if not hint:
        hint = _hint(what, error.context or "")
    if r"'\t'" in what:
        what = "a tab is used for indentation"
    elif "expected <block end>" in what:
        what = "this does not fit the indentation of the lines above"
    where = Location(filename, mark.line + 1, mark.column + 1) if mark else Location(filename)
    problems.add(what, where, hint)


def _hint(what: str, context: str) -> str:
    if r"'\t'" in what:
        return "indent with spaces"
    if "mapping values are not allowed" in what:
        return "check the indentation of this line, and quote a value that contains `: `"
    if "could not find expected ':'" in what:
        return "write `key: value`, with a space after the colon"
    if "flow" in context:
        return "close the bracket, and quote values that contain brackets or commas"
    if "block" in context:
        return "check the indentation of this line against the lines above"
    if "undefined alias" in what:
        return "define it before with `&name`, or quote text that starts with `*`"
    return ""
