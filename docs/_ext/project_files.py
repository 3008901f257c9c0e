"""Links to the files beside the code (README.md, SECURITY.md, ...) lead to the pages that include them.

So those files, whose links to pages begin with `docs/`, have links that work where they are read by themselves.
"""

import re
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

# The README has no page of its own: the first page says what it says at its beginning.
_PAGES = {"README": "index", "SECURITY": "security", "CHANGELOG": "changelog", "CONTRIBUTING": "contributing"}
_FILE = re.compile(rf"(?:\.\./)*({'|'.join(_PAGES)}|docs/[\w/-]+)\.md(?:#(.*))?\Z")


class ProjectFiles(SphinxTransform):
    """Turns such links into links to pages, in the words of MyST."""

    default_priority = 300

    def apply(self, **_options: Any) -> None:
        for reference in self.document.findall(addnodes.pending_xref):
            match = _FILE.match(reference["reftarget"])
            if match is not None and reference["reftype"] == "myst":
                reference["refdomain"] = "doc"
                reference["reftarget"] = _PAGES.get(match[1], match[1].removeprefix("docs/"))
                reference["reftargetid"] = match[2] if match[1] != "README" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_transform(ProjectFiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
