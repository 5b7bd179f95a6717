"""What the names of files tell `reload`: the supervisor watches them, and workers report which they write."""

import glob
import os

# File name extensions of template languages; in a folder `templates` every file is a template.
_TEMPLATES = tuple(
    ".html .htm .xhtml .djhtml .jinja .jinja2 .j2 .mako .tmpl .tpl .pt .chameleon .mustache .hbs".split()
)


def is_installed(path: str) -> bool:
    """Whether a file belongs to an installed package."""
    return "/site-packages/" in path or "/dist-packages/" in path


def is_template(path: str) -> bool:
    return path.endswith(_TEMPLATES) or "/templates/" in path


def fixed_part(entry: str) -> str:
    """The folder or file that an entry of `reload_extra_files` begins with, before its pattern."""
    path = os.path.abspath(entry)  # noqa: PTH100
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120
    return path
