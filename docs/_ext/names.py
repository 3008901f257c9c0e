"""What is in single backticks in a docstring: a link where it names something, code otherwise.

Docstrings are plain text, in which backticks mark whatever is code: `max_age`, `@never_reduce`, `web.Request`.
Also: a value that a package re-exports is described where it is exported, by the text that stands under it at home.
"""

import ast
import importlib
import inspect
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

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
}
_PARAMETER = re.compile(r"- `(\*{0,2}\w+)`: ")
_OURS = "aiohttp_reduce"


def name_role(
    _role: str, rawtext: str, text: str, _line: int, inliner: Any, _options: Any = None, _content: Any = None
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """The role of single backticks."""
    text = nodes.unescape(text)
    literal = nodes.literal(rawtext, text, classes=["docutils"])
    match = _NAME.match(text)
    if match is None:
        return [literal], []
    target = match[1]
    env: BuildEnvironment = inliner.document.settings.env
    reference = addnodes.pending_xref(
        rawtext,
        literal,
        refdomain="py",
        reftype="obj",
        reftarget=target,
        refexplicit=False,
        refdoc=env.current_document.docname,
        may_be_code=True,
    )
    reference["py:module"] = env.ref_context.get("py:module")
    reference["py:class"] = env.ref_context.get("py:class")
    return [reference], []


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
    python = env.domains.python_domain
    if "." not in target or target.startswith(_OURS):
        last = "." + target.rpartition(".")[2]
        places = [
            name
            for name, entry in python.objects.items()
            if name.endswith(last) and entry.objtype in {"class", "function", "data", "exception"}
        ]
        if len(places) == 1:
            entry = python.objects[places[0]]
            address = app.builder.get_relative_uri(node["refdoc"], entry.docname)
            return nodes.reference("", "", content, internal=True, refuri=f"{address}#{entry.node_id}")
    return content if node.get("may_be_code") else None


def describe_values(_app: Sphinx, what: str, name: str, value: Any, _options: Any, lines: list[str]) -> None:
    """Put what stands under a value where it is made in the place of its type's docstring; list a set of names."""
    if what != "data":
        return
    package, _, short = name.rpartition(".")
    text = _text_under(package, short)
    if text is not None:
        lines[:] = [*text.splitlines(), ""]
    if isinstance(value, frozenset):
        lines += [", ".join(f"``{one}``" for one in sorted(value, key=str.lower)), ""]


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
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
