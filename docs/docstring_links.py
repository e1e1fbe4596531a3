"""Turns public names in docstrings, written as in diffusers, [`Class.method`], into links on the site."""

import re
from typing import Any

import griffe

import diffae_hub


class DocstringLinks(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces the names in one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"\[`~?([\w.]+)`\](?!\()", _link, obj.docstring.value)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    if name.split(".")[0] in diffae_hub.__all__:
        return f"[`{name}`][diffae_hub.{name}]"
    return f"`{name}`"
