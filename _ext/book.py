r"""The book's own Sphinx extension: what Jupyter Book 1.x leaves to be done.

1. The site is self-contained: MathJax is copied into it.
2. Jupyter Book always loads sphinx-thebe, whose script is emitted twice (a JavaScript error on
   every page). The book does not use it: it is taken out.
3. A cell tagged `hide-cell` and `solution` says "Show the solution"; one tagged `hide-input`, whose
   output is a claim, "Show how this was measured".
4. Notebooks link to the glossary in plain Markdown: `[eps-ball](../glossary.md#eps-ball)`.
5. Formulas may carry `\tag{1}`, which Jupyter and Colab show as well.
6. API pages: types that have no page of their own stay plain text, attributes are told once.
7. Below a page that opens a part the chapters are numbered 1, 2, 3; its own sections have no number.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref, toctree
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

# What MathJax 3 needs to turn TeX into HTML. The whole package is 20 MB, most of it speech data.
MATHJAX = (
    "tex-chtml.js",
    "output/chtml/fonts",
    "input/tex/extensions",
    "a11y/assistive-mml.js",
    "ui",
)


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the needed part of MathJax into the finished site."""
    if exception or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("MathJax is missing: pip install sphinx-mathjax-offline")
    source = Path(spec.submodule_search_locations[0], "static", "mathjax")
    target = Path(app.outdir, "_static", "mathjax")
    for part in MATHJAX:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        elif (source / part).exists():
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)
    for source_map in Path(app.outdir, "_static").rglob("*.map"):
        source_map.unlink()


def drop_font_preloads(app: Sphinx, exception: Exception | None) -> None:
    """Let the theme's fonts load when they are needed: opened as a file, a page may not preload."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        mended = re.sub(r'<link rel="preload" as="font"[^>]*>\s*', "", text)
        if mended != text:
            page.write_text(mended, encoding="utf-8")


def label_hidden_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give hidden cells a label that says what is hidden."""
    for cell in doctree.findall(nodes.container):
        if "tag_solution" in cell["classes"]:
            cell["prompt_show"], cell["prompt_hide"] = "Show the solution", "Hide the solution"
        elif "tag_hide-input" in cell["classes"]:
            cell["prompt_show"], cell["prompt_hide"] = "Show how this was measured", "Hide the code"


def keep_tags(app: Sphinx, doctree: nodes.document) -> None:
    r"""Leave a formula with a number of its own as it is: Sphinx's `split` allows no `\tag`."""
    for formula in doctree.findall(nodes.math_block):
        text = formula.astext()
        if "\\tag" in text and not formula.get("nowrap"):
            formula["nowrap"] = True
            formula.children = [nodes.Text(rf"\[{text}\]")]


def link_terms(app: Sphinx, doctree: nodes.document) -> None:
    """Let `glossary.md#eps-ball` reach a term of the glossary, as it would reach a heading."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for term in doctree.findall(nodes.term):
        for target in (name for name in term["ids"] if name.startswith("term-")):
            slugs[target.removeprefix("term-")] = (term.line or 0, target, term.astext())


def openers(env: BuildEnvironment) -> dict[str, nodes.Element]:
    """The pages with chapters below them, and for each the entries of its own table of contents."""
    found = {}
    for page, contents in env.tocs.items():
        entries = contents.next_node(nodes.bullet_list, descend=True)
        if page != env.config.root_doc and entries and entries.next_node(toctree):
            found[page] = entries
    return found


def chapters_first(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Before numbers are given: a part's chapters stand before the sections of the page that opens it."""
    for entries in openers(env).values():
        entries.children.sort(key=lambda entry: not isinstance(entry, toctree))
    return []


def unnumber_openers(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """After numbers were given: the sections of a page that opens a part lose theirs."""
    for page, entries in openers(env).items():
        numbers = env.toc_secnumbers.get(page, {})
        for link in entries.findall(nodes.reference):
            link["secnumber"] = None
            if link["anchorname"] in numbers:
                numbers[link["anchorname"]] = ()  # left out, it would get the number of the page
    return []


def plain_types(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.TextElement | None:
    """Leave a type without a page as text; a reference that an author wrote must still resolve."""
    written = "refwarn" in node
    return text if node.get("refdomain") == "py" and not written else None


def is_public(parent: Any, child: Any) -> bool:
    """Tell whether an API page lists a name: what a module offers, not what it imports.

    A class tells of its attributes in its docstring, so they are not listed a second time.
    """
    if parent.type == "class":
        return not child.inherited and (child.type != "attribute" or bool(child.docstring))
    if parent.type not in ("module", "package"):
        return True
    # The types that signatures name are explained even where a module does not export them.
    type_alias = child.type == "data" and child.docstring and not child.name.startswith("_")
    offered = parent.all is None or child.name in parent.all or bool(type_alias)
    return offered and not child.imported


def public_names(app: Sphinx) -> None:
    """Apply the rule above to all that was read of the package."""
    objects = app.env.autoapi_all_objects
    for item in list(objects.values()):
        # A function that a package offers may hide the module of the same name.
        objects.update({module.id: module for module in getattr(item, "submodules", [])})
    for item in objects.values():
        item.children = [child for child in item.children if is_public(item, child)]


def api_pages(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """Always read the API pages anew: Sphinx does not see that the package has changed."""
    return [page for page in env.found_docs if page.startswith("reference/")]


def without_thebe(files: list[Any]) -> list[Any]:
    """Drop sphinx-thebe from a page's script or style files."""

    def is_thebe(file: Any) -> bool:
        inline = (getattr(file, "attributes", None) or {}).get("body") or ""
        return "THEBE_JS_URL" in inline or "thebe" in str(getattr(file, "filename", None) or file)

    return [file for file in files if not is_thebe(file)]


def signature_lines(match: re.Match[str]) -> str:
    """Show a long signature as lines, not as a definition list without terms."""
    lines = match[1].replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'<div class="signature-lines"><div>{lines}</div>'


def finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Last changes to a page before its template is filled in."""
    footer, index = "theme_extra_footer", context["pathto"]("genindex")
    context[footer] = context.get(footer, "").replace('href="genindex.html"', f'href="{index}"')
    for key in ("script_files", "css_files"):
        context[key] = without_thebe(context.get(key, []))
    if "body" in context:
        # The summary's own words are its name; the generic label would hide them.
        body = context["body"].replace('<summary aria-label="Toggle hidden content">', "<summary>")
        # Sphinx writes lists that are not lists, and a role that ARIA has given up.
        body = re.sub(r"<dl>\s*<dd>(.*?)</dl>", signature_lines, body, flags=re.S)
        body = body.replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
        context["body"] = body.replace(' role="doc-biblioentry"', "")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above to Sphinx's events."""
    app.add_css_file("book.css")
    app.add_js_file("book.js", loading_method="defer")
    app.connect("doctree-read", label_hidden_cells)
    app.connect("doctree-read", keep_tags)
    app.connect("doctree-read", link_terms)
    app.connect("missing-reference", plain_types)
    app.connect("builder-inited", public_names, priority=900)
    app.connect("env-get-outdated", api_pages)
    app.connect("env-get-updated", chapters_first, priority=400)  # Sphinx gives numbers at 500
    app.connect("env-get-updated", unnumber_openers, priority=600)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", drop_font_preloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
