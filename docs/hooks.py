"""Hooks of mkdocs: replace comments in a page by sections of other files, commands' help, or operators' pages.

The comments are `<!-- include: README.md / Install -->` (without a section, the whole file except its title; with
`top`, the part before the first section), `<!-- commands -->` and `<!-- operators -->`. Formulas become MathML.
"""

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PICTURES = ("examples/before_after.jpg",)
# Files of the repository that have a page of their own.
PAGES = {"benchmarks/cpu.md": "performance.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}


def on_files(files, config):
    """Add the pictures of included sections."""
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replace a page's comments and formulas."""
    markdown = re.sub(r"<!-- include: (\S+?)(?: / (.+?))? -->", lambda m: included(m[1], m[2]), markdown)
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
    if "<!-- operators -->" in markdown:
        markdown = markdown.replace("<!-- operators -->", operators())
    return re.sub(r"\$\$(.+?)\$\$", lambda m: formula(m[1]), markdown, flags=re.DOTALL)


def included(file: str, section: str | None) -> str:
    """A section of a file of the repository, with its links adapted to the site."""
    text = (ROOT / file).read_text(encoding="utf-8").partition("\n")[2]
    if section == "top":
        text = text.partition("\n## ")[0]
    elif section:
        found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"{file} has no section {section!r}")
        text = found[1]
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)]+)\)", _link, text)


def _link(found: re.Match) -> str:
    """A link to a page of the site, or the text alone if the site has no such page."""
    text, target = found.groups()
    page = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    return f"[{text}]({page})" if page else text


def formula(tex: str) -> str:
    """MathML, which browsers show without a script."""
    return convert(" ".join(tex.split()), display="block")


def commands() -> str:
    """The help of every command."""
    import typer

    from resshift_fast.cli.app import app

    def visit(command, context):
        yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
        for name, child in getattr(command, "commands", {}).items():
            yield from visit(child, type(context)(child, parent=context, info_name=name))

    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="resshift-fast")
    return "\n".join(visit(command, context))


def operators() -> str:
    """For every public operator: formula, backends, accuracy, cost, and a reference of its function."""
    from resshift_fast import ops

    return "\n".join(_operator(name, getattr(ops, name)) for name in ops.__all__)


def _operator(name: str, function) -> str:
    from resshift_fast.backends.registry import OPERATORS

    module = inspect.getmodule(function)
    operator = OPERATORS[name]
    backends = ", ".join(f"`{b}`" for b in ("reference", *operator.loaders))
    lines = [f"## {name}\n", _from_rst(inspect.getdoc(module)), ""]
    lines += [f"**Backends**: {backends}{'; training alone calls it' if operator.training else ''}.\n"]
    lines += [f"**Accuracy**: {_accuracy()}\n", f"**Cost**: {_cost(operator)}\n"]
    return "\n".join([*lines, f"::: {module.__name__}.{name}\n"])


def _from_rst(text: str) -> str:
    """Markdown of a docstring whose formulas are directives `.. math::`, on one line or indented below it."""

    def shown(found: re.Match) -> str:
        tex = re.sub(r"\n\s*\n", r" \\\\ ", found[1].strip())
        if "&" in tex:
            tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
        return f"\n\n$${tex}$$\n\n"

    return re.sub(r"\.\. math::((?:[^\n]*)(?:\n(?:    [^\n]*|\s*(?=\n    ))\n?)*)", shown, text)


def _accuracy() -> str:
    from resshift_fast.core.accuracy import LIMITS, PLAIN_FACTOR

    return (
        f"against float64 a relative error of at most {LIMITS[torch.float32]:g} in float32, and in 16 bits "
        f"{PLAIN_FACTOR:g} times that of the reference."
    )


def _cost(operator) -> str:
    """What a call launches, by its first example, and whether its matrix products are counted."""
    parts = []
    if "triton" in operator.loaders and find_spec("triton"):
        from resshift_fast.kernels.launch import record

        dtype = operator.dtypes[0] if operator.dtypes else torch.float32
        with record() as made:
            operator.loaders["triton"]().function(*operator.examples(torch.device("cpu"), dtype)[0])
        names = ", ".join(f"`{launch.name}`" for launch in made)
        parts.append(f"{len(made)} launch{'es' if len(made) > 1 else ''} in Triton for a small call ({names})")
    if operator.matrix_operations:
        parts.append("matrix products are counted by `torch.utils.flop_counter`")
    return "; ".join(parts) + "." if parts else "see the function."
