"""How Sphinx builds these pages; `tox -e docs` runs it."""

from __future__ import annotations

import guestagent

project = "guestagent"
author = "the guestagent authors"
project_copyright = f"%Y, {author}"
release = version = guestagent.__version__

extensions = ["oslo_config.sphinxext"]
exclude_patterns = ["_build", "_generated"]
nitpicky = True

html_theme = "furo"
html_title = f"guestagent {release}"
html_copy_source = False
