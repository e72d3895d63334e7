"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Pages that are files of the project's root.
INCLUDED = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "security": "SECURITY.md",
    "benches": "bench/README.md",
}

project = "fastseq"
author = "fastseq contributors"
project_copyright = author
version = release = importlib.metadata.version("fastseq-torch")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["conf.py"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]

default_role = "py:obj"
add_module_names = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_use_plots = False

html_theme = "pydata_sphinx_theme"
html_title = "fastseq"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "pygments_light_style": "default",
}
html_sidebars = {"index": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def with_links(text: str) -> str:
    """Have links to files lead to pages of the site."""
    text = re.sub(r"\]\(docs/", "](", text)
    for page, name in INCLUDED.items():
        text = re.sub(rf"\]\((\.\./)*{re.escape(name)}", f"]({page}.md", text)
    return text


def on_source_read(_: Any, page: str, source: list[str]) -> None:
    """Put files of the root into their pages."""
    if page in INCLUDED:
        source[0] = (ROOT / INCLUDED[page]).read_text() + "\n" + source[0]
    source[0] = with_links(source[0])


def skips(_: Any, __: str, name: str, *___: Any) -> bool | None:
    """Leave out the methods that scikit-learn makes for metadata."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("source-read", on_source_read)
    app.connect("autodoc-skip-member", skips)
