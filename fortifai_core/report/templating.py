"""The page of a report: a template that extends `page.html`, filled in; all that comes from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fortifai_core.outside import clipped, visible

MOST = 100_000  # characters of one value: the page stays usable whatever is in it


def _shown(value: object) -> object:
    """What a template writes of a value; `Markup` is ours already."""
    return visible(clipped(value, MOST)) if type(value) is str else value


def render_page(template: str, *, filters: Mapping[str, Callable[..., object]], config: Any, **values: object) -> str:
    """The page as text. A name that the template asks for and is not given raises jinja2's UndefinedError.

    Args:
        template: its name in `templates/`.
        filters: what the template writes values with, by name.
        config: the experiment's configuration, shown whole.
        values: what else the template speaks of. Text is escaped, `markupsafe.Markup` (figures, styles) is not.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fortifai_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(filters)
    shown = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return environment.get_template(template).render(config=shown, **values)
