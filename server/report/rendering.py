"""What every page has in common: one file that fetches nothing and runs nothing.

Guarantees (tests/unit/server/test_report_page.py, and those of each page):
    No script and no external address, and a content security policy that forbids both even if something slipped in.
    Text from outside is escaped. The same names give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

STYLE = Path(__file__).parent / "templates" / "report.css"
"""Of every page; others add to it."""


def render_page(template: Path, styles: Sequence[Path], **names: object) -> str:
    """Return the text of a page.

    Args:
        template: Jinja, beside those that it includes. Its head takes `style` and `policy`.
        styles: Style sheets of this checkout, in their order; pinned by their hash in the policy.
        names: What else the template takes; all of them escaped.

    Raises:
        jinja2.UndefinedError: the template takes a name that is not given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template.name).render(
        # The one text that is not escaped: it is ours, and pinned.
        style=Markup(style),  # noqa: S704 - not from outside
        policy=policy,
        **names,
    )


def svg_uri(svg: str) -> str:
    """Return a picture as what `<img>` shows: there it can neither run nor fetch anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
