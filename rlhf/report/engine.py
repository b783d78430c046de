"""The template engine of the pages, which escapes everything that comes from files."""

from pathlib import Path

import jinja2


def template_engine() -> jinja2.Environment:
    """An engine over `templates/`, strict about names."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
