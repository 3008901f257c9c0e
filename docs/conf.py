"""How `make docs` builds the pages: without the network, and the same each time."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from inventories import write_inventories  # noqa: E402

project = "aiohttp-reduce"
author = "The aiohttp-reduce maintainers"
copyright = author
(release,) = re.findall(r'__version__ = "(.*)"', (HERE.parent / "aiohttp_reduce" / "_version.py").read_text("utf-8"))
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "names", "project_files"]
exclude_patterns = ["_build", "inventory"]

html_theme = "furo"
html_title = f"aiohttp-reduce {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False

# Markdown: each heading can be linked to as `page.md#heading`.
myst_heading_anchors = 4

# The inventories of other projects are out of reach while we build: see `inventory/`.
intersphinx_mapping = write_inventories(
    HERE,
    {
        "python": "https://docs.python.org/3",
        "aiohttp": "https://docs.aiohttp.org/en/stable",
        "multidict": "https://multidict.aio-libs.org/en/stable",
        "yarl": "https://yarl.aio-libs.org/en/stable",
    },
)
intersphinx_disabled_reftypes = ["std:*"]

# A name in single backticks is a link where it names something, and code otherwise: see `_ext/names.py`.
default_role = "name"
nitpicky = True
# Type variables have no page.
nitpick_ignore_regex = [("py:class", r"(.*\.)?[PT](\.args|\.kwargs)?")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# `DEFAULT_IGNORE_HEADERS` and `4 * 2**20` as they are written.
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
