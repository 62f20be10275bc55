"""How the site is built from these pages and from the docstrings: `make docs`.

Nothing of it is fetched: no theme, font or script of another host, and no inventory of other projects, so that a build
and a reader need no network. Docstrings are plain text in which single backticks are code; a name of ours among them
becomes a link, any other stays code.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole

import ckptflow

project = "ckptflow"
version = release = ckptflow.__version__
project_copyright = "the authors of ckptflow, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"
html_theme = "furo"
html_title = f"ckptflow {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_baseurl = ""
copybutton_selector = "div:not(.highlight-text):not(.highlight-json) > div.highlight > pre"  # not on output

myst_heading_anchors = 3  # as on GitHub, where these pages are read as well
myst_enable_extensions = ["colon_fence"]

default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False

nitpicky = True
nitpick_ignore = [
    ("py:class", "ckptflow.callbacks.callback.Watcher"),  # what its argument's text calls a PreemptionWatcher
]
nitpick_ignore_regex = [
    ("py:obj", r".*"),  # code that is not one of our names
    ("py:(class|exc|data)", r"(builtins|typing|collections|os|datetime|types|signal|numpy|np|tf|tensorflow)\b.*"),
]


class Code(PyXRefRole):
    """A name that may be one of ours; anything else is code as it stands, with its dots and signs."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", self.text):
            return super().run()
        return [nodes.literal(self.rawtext, self.text)], []


def setup(app: Sphinx) -> None:
    app.add_role_to_domain("py", "obj", Code(), override=True)
