"""What is in single backticks: a link where it names something, code otherwise.

Docstrings are plain text, in which backticks mark whatever is code: `max_age`, `@never_reduce`, `web.Request`. Lists
of "- `max_age`: ..." are their parameters. A value that a package re-exports is described where it is exported, by the
text that stands under it at home.
"""

import ast
import enum
import importlib.util
import inspect
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform

_NAME = re.compile(r"@?([A-Za-z_][\w.]*)(?:\(.*\))?\Z")
# Where names are described that docstrings shorten, or that are made in another module than they are imported from.
_SAME = (
    (re.compile(r"(?:aiohttp\.)?web(?:_\w+)?\.(\w+)\Z"), r"aiohttp.web.\1"),
    (re.compile(r"aiohttp\.(?:client|client_reqrep|connector)\.(\w+)\Z"), r"aiohttp.\1"),
    (re.compile(r"(?:_asyncio|asyncio\.events)\.(\w+)\Z"), r"asyncio.\1"),
    (re.compile(r"(CIMultiDict(?:Proxy)?)\Z"), r"multidict.\1"),
)
_PRIVATE_TYPES = {
    "**session_arguments: Unpack[SessionArguments]": "**session_arguments",
    "~aiohttp_reduce.server.watching.Watchable": "ReducingClientSession | ReduceClientMiddleware",
    "= _NEVER": "= math.inf",
}
_RFC = re.compile(r"RFC (\d{4})(?:, (\d+(?:\.\d+)*))?")
_ERROR = re.compile(r"(?<![`.\w])(TypeError|ValueError|RuntimeError)(?![`\w])")
_PARAMETER = re.compile(r"- `(\*{0,2}\w+)`: ")
_OURS = "aiohttp_reduce"
# By themselves these are arguments and attributes; as modules they are named in full.
_MODULES = {"client", "hooks", "server", "stats", "testing"}
_TOP_LEVEL = {"class", "function", "decorator", "data", "exception"}


def reference_to(text: str, rawtext: str, env: BuildEnvironment) -> nodes.Node:
    """A reference to what the text names, if it is such that it may name something; code otherwise."""
    literal = nodes.literal(rawtext, text, classes=["docutils"])
    match = _NAME.match(text)
    if match is None or match[1] in _MODULES:
        return literal
    reference = addnodes.pending_xref(
        rawtext,
        literal,
        refdomain="py",
        reftype="obj",
        reftarget=match[1],
        refexplicit=False,
        refdoc=env.current_document.docname,
        may_be_code=True,
    )
    reference["py:module"] = env.ref_context.get("py:module")
    reference["py:class"] = env.ref_context.get("py:class")
    return reference


def name_role(
    _role: str, rawtext: str, text: str, _line: int, inliner: Any, _options: Any = None, _content: Any = None
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """The role of single backticks in docstrings."""
    return [reference_to(nodes.unescape(text), rawtext, inliner.document.settings.env)], []


class NamesInMarkdown(SphinxTransform):
    """The same for what stands in backticks in the pages."""

    default_priority = 300

    def apply(self, **_options: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            is_plain = not literal.get("classes") and literal.astext() == literal.rawsource.strip("` ")
            inside = (nodes.title, nodes.reference, addnodes.pending_xref)
            if is_plain and not any(isinstance(parent, inside) for parent in parents(literal)):
                literal.replace_self(reference_to(literal.astext(), literal.rawsource, self.env))


def parents(node: nodes.Node) -> Iterator[nodes.Node]:
    """What a node stands in, from the inside out."""
    while node.parent is not None:
        node = node.parent
        yield node


def rename(
    _app: Sphinx, _env: BuildEnvironment, node: addnodes.pending_xref, _content: nodes.TextElement
) -> nodes.Node | None:
    """The first to be asked: lets the others look for a name where it is described."""
    for pattern, name in _SAME:
        if pattern.match(node["reftarget"]):
            node["reftarget"] = pattern.sub(name, node["reftarget"])
            break
    return None


def public_or_code(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """The last to be asked: something public that is exported elsewhere, or code, or (not by our role) nothing."""
    target = node["reftarget"]
    if "." not in target or target.startswith(_OURS):
        last = "." + target.rpartition(".")[2]
        places = [
            entry
            for name, entry in env.domains.python_domain.objects.items()
            if name.endswith(last) and entry.objtype in _TOP_LEVEL and not entry.aliased
        ]
        # The one that this page describes comes first.
        nearest = [entry for entry in places if entry.docname == node["refdoc"]] or places
        if len(nearest) == 1:
            address = app.builder.get_relative_uri(node["refdoc"], nearest[0].docname)
            return nodes.reference("", "", content, internal=True, refuri=f"{address}#{nearest[0].node_id}")
    return content if node.get("may_be_code") else None


def describe_values(_app: Sphinx, what: str, name: str, value: Any, _options: Any, lines: list[str]) -> None:
    """Put what stands under a value where it is made in the place of its type's docstring; list a set of names.

    Members of an enum are listed with what they say that they mean, or what stands under them.
    """
    if isinstance(value, enum.EnumType) and what == "class":
        under = ModuleAnalyzer.for_module(value.__module__).find_attr_docs()
        for member in value:
            meaning = getattr(member, "description", None) or " ".join(under.get((value.__name__, member.name), []))
            lines += [f".. py:attribute:: {member.name}", f"   :value: {member.value!r}", "", f"   {meaning}", ""]
    if what != "data":
        return
    package, _, short = name.rpartition(".")
    text = _text_under(package, short)
    if text is not None:
        lines[:] = [*text.splitlines(), ""]
    if isinstance(value, frozenset):
        lines += [", ".join(f"``{one}``" for one in sorted(value, key=str.lower)), ""]


def link_words(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Make links of "RFC 9110, 9.2.1" and of the exceptions that a docstring says are raised; not in examples."""
    for number, line in enumerate(lines):
        if not line.startswith("    "):
            line = _RFC.sub(_rfc_link, line)
            lines[number] = _ERROR.sub(r"`\1`", line)


def _rfc_link(match: re.Match[str]) -> str:
    place = f"#section-{match[2]}" if match[2] else ""
    return f"`{match[0]} <https://www.rfc-editor.org/rfc/rfc{match[1]}{place}>`__"


def list_parameters(_app: Sphinx, what: str, _name: str, value: Any, _options: Any, lines: list[str]) -> None:
    """Make fields of a list of parameters: of "- `max_age`: ..." where the function or class has such a parameter."""
    if what not in {"function", "method", "class", "decorator"}:
        return
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return
    for number, line in enumerate(lines):
        match = _PARAMETER.match(line)
        if match is not None and match[1].lstrip("*") in parameters:
            lines[number] = f":param {match[1].replace('*', chr(92) + '*')}: {line[match.end() :]}"


def _text_under(module_name: str, name: str) -> str | None:
    """The string that follows the assignment of this name, in this module or where this one has it from."""
    module = importlib.import_module(module_name)
    tree = ast.parse(inspect.getsource(module))
    for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.ImportFrom) and name in {alias.name for alias in statement.names}:
            home = importlib.util.resolve_name("." * statement.level + (statement.module or ""), module.__package__)
            return _text_under(home, name)
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and getattr(targets[0], "id", None) == name:
            value = getattr(after, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return inspect.cleandoc(value.value)
    return None


def plain_signature(
    _app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Without the names of types that only type checkers need to know."""
    for private, public in _PRIVATE_TYPES.items():
        signature = signature and signature.replace(private, public)
    return signature, returns


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_role("name", name_role)
    app.connect("missing-reference", rename, priority=100)
    app.connect("missing-reference", public_or_code, priority=900)
    app.connect("autodoc-process-docstring", describe_values, priority=400)
    app.connect("autodoc-process-docstring", list_parameters)
    app.connect("autodoc-process-docstring", link_words)
    app.add_transform(NamesInMarkdown)
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
