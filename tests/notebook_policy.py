"""What every notebook of the book keeps to, one function a rule.

A rule takes a `Page` and yields sentences that tell an author what to change; no sentence means that the rule is kept.
`test_notebooks.py` applies the rules to the chapters, and shows on planted faults that each of them bites.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import execute
import nbformat
import slug
from nbformat import NotebookNode

CHAPTERS = execute.ROOT / "chapters"
# Parts open, and the book closes, with a short notebook: no quiz, exercises or closing sections owed.
SHORT = {"applications.ipynb", "attacks.ipynb", "capstone.ipynb", "repair.ipynb"}

MAX_BYTES = 1_000_000
MAX_LINES = 20
MIN_ALT = 20
MIN_CLAIMS = 3
MIN_GRADERS = 3


@dataclass
class Page:
    """A notebook, the file it stands in, and whether that is one of the short ones."""

    notebook: NotebookNode
    path: Path
    short: bool = False

    @classmethod
    def read(cls, path: Path) -> "Page":
        short = path.relative_to(CHAPTERS).as_posix() in SHORT
        return cls(nbformat.read(path, as_version=4), path, short)

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def markdown(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]

    @property
    def prose(self) -> str:
        return "\n\n".join(cell.source for cell in self.markdown)

    @property
    def program(self) -> str:
        return "\n".join(cell.source for cell in self.code)


Rule = Callable[[Page], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule under its function's name."""
    RULES[function.__name__] = function
    return function


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def begin(cell: NotebookNode) -> str:
    """Name a cell by its first line, as an author would look for it."""
    return repr(cell.source.strip().split("\n")[0][:60])


def texts(cell: NotebookNode) -> Iterator[str]:
    """Every piece of text among a cell's outputs, the figures left out."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.text
        for mime, data in output.get("data", {}).items():
            if isinstance(data, str) and (mime.startswith("text/") or mime == "image/svg+xml"):
                yield data


def without_fences(text: str) -> str:
    """Markdown without fenced blocks."""
    return re.sub(r"^(```+|~~~+).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    """Markdown without fenced blocks and code spans."""
    text = without_fences(text)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)


def without_math(text: str) -> str:
    """Markdown without LaTeX."""
    text = re.sub(r"\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "", text, flags=re.DOTALL)
    return re.sub(r"(?<!\\)\$[^$\n]+\$", "", text)


def headings(page: Page) -> list[tuple[int, str]]:
    """The level and text of every heading."""
    found = re.findall(r"^(#{1,6}) +(.+?)\s*$", without_fences(page.prose), flags=re.MULTILINE)
    return [(len(marks), text) for marks, text in found]


# The run


@rule
def executed_once_from_top_to_bottom(page: Page) -> Iterator[str]:
    counts = [cell.execution_count for cell in page.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"The cells were run in the order {counts}; `make execute` runs them once, from the top."


@rule
def no_empty_cell(page: Page) -> Iterator[str]:
    for number, cell in enumerate(page.notebook.cells):
        if not cell.source.strip():
            yield f"Cell {number} is empty."


@rule
def setup_cell_comes_first(page: Page) -> Iterator[str]:
    wanted = slug.setup_cell(slug.current())
    if not page.code or page.code[0].source != wanted:
        yield f"The first code cell must be exactly this:\n{wanted}"
    elif page.code[0].outputs:
        yield "The set-up cell must not print anything."


@rule
def installs_nothing_else(page: Page) -> Iterator[str]:
    for cell in page.code[1:]:
        if re.search(r"\bpip3? install|^\s*[!%]\s*(pip|conda|apt|uv)\b", cell.source, re.MULTILINE):
            yield f"Only the set-up cell installs; a package needed by {begin(cell)} goes to pyproject.toml."


@rule
def is_seeded(page: Page) -> Iterator[str]:
    if "seed_everything(" not in page.program:
        yield "No cell calls modelsec.seed_everything(0)."


@rule
def no_error_or_warning_is_stored(page: Page) -> Iterator[str]:
    for cell in page.code:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{begin(cell)} ended in {output.ename}."
            elif output.output_type == "stream" and output.name == "stderr":
                yield f"{begin(cell)} wrote to stderr: {output.text[:80]!r}"
        for text in texts(cell):
            if found := re.search(r"\w*Warning:|Traceback \(most recent", text):
                yield f"{begin(cell)} shows {found[0]!r}; mend its cause."


@rule
def no_failure_is_hidden(page: Page) -> Iterator[str]:
    hiding = {"nbval-raises-exception", "nbval-skip", "raises-exception", "skip-execution"}
    for cell in page.code:
        for tag in sorted(tags(cell) & hiding):
            yield f"{begin(cell)} is tagged {tag!r}, with which a failure passes: catch the exception instead."


@rule
def outputs_are_the_same_everywhere(page: Page) -> Iterator[str]:
    """No seconds, memory addresses, progress bars or widgets, which differ between runs or need a kernel."""
    seconds = r"\b\d[\d.]*\s?(?:s|sec|secs|seconds?|ms|minutes?|it/s)\b|Wall time|CPU times"
    for cell in page.code:
        for text in texts(cell):
            plain = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
            if found := re.search(seconds, plain):
                yield f"{begin(cell)} prints a time, {found[0]!r}: tell the cost in gradient calls."
            if found := re.search(r"\bat 0x[0-9a-f]+", plain):
                yield f"{begin(cell)} prints a memory address, {found[0]!r}."
            if "\r" in text.replace("\r\n", "\n"):
                yield f"{begin(cell)} stored a progress bar; `make execute` turns them off."
        for output in cell.outputs:
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                yield f"{begin(cell)} stored a widget, which nothing but a live kernel can show."


@rule
def no_place_of_one_machine(page: Page) -> Iterator[str]:
    local = (
        r"(?<![\w.~-])/(?:home|root|tmp|Users|work|mnt|private|var/folders)/[\w.-]*"
        r"|\b[A-Za-z]:\\(?:Users|Windows|Program)\w*|\blocalhost\b|\b127\.0\.0\.1\b"
    )
    for cell in page.notebook.cells:
        for text in [cell.source, *texts(cell)]:
            if found := re.search(local, text):
                yield f"{begin(cell)} names {found[0]!r}, a place on one machine."


@rule
def metadata_is_normalised(page: Page) -> Iterator[str]:
    for key, wanted in execute.METADATA.items():
        if page.notebook.metadata.get(key) != wanted:
            yield f"The notebook's {key} is not the one that `make execute` writes: {wanted}"
    identifiers = [cell.get("id") for cell in page.notebook.cells]
    if None in identifiers or len(set(identifiers)) < len(identifiers):
        yield "A cell has no id of its own; `make execute` gives it one."
    for cell in page.notebook.cells:
        for key in sorted(execute.EDITOR_KEYS.intersection(cell.metadata)):
            yield f"{begin(cell)} has an editor's {key!r} in its metadata; `make execute` removes it."


@rule
def small_enough(page: Page) -> Iterator[str]:
    size = len(nbformat.writes(page.notebook).encode())
    if size > MAX_BYTES:
        yield f"The notebook has {size:,} bytes; {MAX_BYTES:,} are allowed. Draw fewer or smaller figures."


# The text


@rule
def opens_with_title_and_question(page: Page) -> Iterator[str]:
    titles = [text for level, text in headings(page) if level == 1]
    if len(titles) != 1:
        yield f"There must be one title ('# ...'); there are {len(titles)}."
    first = page.notebook.cells[0]
    lines = [line for line in first.source.split("\n") if line.strip()]
    if first.cell_type != "markdown" or not lines[0].startswith("# "):
        yield "The first cell must be Markdown that begins with the title."
    elif len(lines) < 2 or not lines[1].strip(" *_").endswith("?"):
        yield "The line under the title must be the question that the chapter answers."


@rule
def has_at_a_glance_table(page: Page) -> Iterator[str]:
    cells = [
        c.source for c in page.markdown if re.search(r"\bat a glance\b", c.source, re.IGNORECASE)
    ]
    if not cells:
        yield "There is no 'At a glance' card."
        return
    table = "\n".join(line for line in cells[0].split("\n") if line.lstrip().startswith("|"))
    if not re.search(r"^\s*\|(\s*:?-+:?\s*\|)+\s*$", table, re.MULTILINE):
        yield "The 'At a glance' card must be a plain Markdown table."
    wanted = {
        "objectives": r"objective|you will|you can",
        "prerequisites": r"prerequisite|before|you need",
        "minutes to read and to run": r"minute|\bmin\b",
        "threat card": r"threat",
    }
    for what, pattern in wanted.items():
        if not re.search(pattern, table, re.IGNORECASE):
            yield f"The 'At a glance' table does not tell the {what}."


@rule
def has_the_closing_sections(page: Page) -> Iterator[str]:
    titles = [text.lower() for level, text in headings(page) if level > 1]
    for wanted in ("where it breaks", "exercises", "quiz", "take-aways", "further reading"):
        if not page.short and not any(wanted in title for title in titles):
            yield f"There is no section called {wanted!r}."


@rule
def markdown_is_plain(page: Page) -> Iterator[str]:
    """Colab and GitHub show the roles and directives of the .md pages as raw text."""
    myst = {
        "a directive": r"^\s*(?:```+|~~~+|:::+)\s*\{[\w:.+-]+\}.*$",
        "a colon fence": r"^\s*:::+.*$",
        "a role": r"\{[A-Za-z][\w:.+-]*\}`[^`]*`",
        "a label": r"^\([\w.:-]+\)=\s*$",
        "a substitution": r"\{\{.*?\}\}",
    }
    for cell in page.markdown:
        # A role is a code span with a name before it, so spans may be taken out for the other patterns only.
        bare = without_math(without_code(cell.source))
        for what, pattern in myst.items():
            text = cell.source if what in {"a directive", "a role"} else bare
            if found := re.search(pattern, text, re.MULTILINE):
                yield f"{begin(cell)} holds {what}, {found[0].strip()!r}: write plain Markdown."


@rule
def no_measured_number_is_typed(page: Page) -> Iterator[str]:
    """Prose that types a measurement is wrong as soon as the code changes; a claim is checked in each run.

    Percentages and decimals with two digits count as measured, except the level of an interval. Parameters are written
    as math or code. A number from elsewhere is listed in its cell's metadata: {"modelsec": {"typed_numbers": ["95%"]}}.
    """
    for cell in page.markdown:
        text = without_math(without_code(cell.source))
        text = re.sub(r"!?\[[^\]]*\]\([^)]*\)|<[^>]*>|https?://\S+", "", text)  # links, tags
        text = re.sub(r"\d+(\.\d+)?\s?% (confidence|interval|level)", "", text)
        allowed = cell.metadata.get("modelsec", {}).get("typed_numbers", [])
        for number in re.findall(
            r"(?<![\w.])\d+(?:\.\d+)?\s?%|(?<![\w.])\d+\.\d{2,}(?![\w.]*\d)", text
        ):
            if number not in allowed:
                yield f"{begin(cell)} types {number!r}: make it a claim, or write a parameter as math or code."


@rule
def links_lead_somewhere(page: Page) -> Iterator[str]:
    for cell in page.markdown:
        for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", without_code(cell.source)):
            if re.match(r"[a-z][a-z0-9+.-]*:", target) or target.startswith("#"):
                continue
            if not (page.path.parent / target.split("#")[0]).is_file():
                yield f"{begin(cell)} links to {target!r}, which is no file."


@rule
def figures_have_alt_text(page: Page) -> Iterator[str]:
    for cell in page.code:
        if any(mime.startswith("image/") for o in cell.outputs for mime in o.get("data", {})):
            alt = str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")).strip()
            if len(alt) < MIN_ALT or re.search(r"\S+\.(png|jpe?g|svg|gif)\b", alt):
                yield (
                    f"The figure of {begin(cell)} needs {MIN_ALT} characters or more that say what it shows, in the "
                    f'cell\'s metadata: {{"mystnb": {{"image": {{"alt": "..."}}}}}}; it has {alt!r}.'
                )
    for cell in page.markdown:
        for alt in re.findall(r"!\[([^\]]*)\]\(", without_code(cell.source)):
            if len(alt) < MIN_ALT:
                yield f"An image in {begin(cell)} needs alt text of {MIN_ALT} characters; it has {alt!r}."


@rule
def figures_are_png(page: Page) -> Iterator[str]:
    for cell in page.code:
        if any("image/svg+xml" in output.get("data", {}) for output in cell.outputs):
            yield f"{begin(cell)} draws SVG, whose text differs between runs: use the default, PNG."


# The code


@rule
def cells_are_short(page: Page) -> Iterator[str]:
    for cell in page.code:
        lines = sum(bool(line.strip()) for line in cell.source.split("\n"))
        if lines > MAX_LINES:
            yield f"{begin(cell)} has {lines} lines; {MAX_LINES} are allowed. Split it, one idea a cell."


@rule
def measures_what_it_says(page: Page) -> Iterator[str]:
    claims = len(re.findall(r"\bclaim\(", page.program))
    checked = any("nbval-check-output" in tags(cell) for cell in page.code)
    if page.short and not (claims or checked):
        yield "There is neither a claim(...) nor a cell tagged 'nbval-check-output'."
    if not page.short and claims < MIN_CLAIMS:
        yield f"There are {claims} claims; a chapter makes {MIN_CLAIMS} or more."


@rule
def exercises_are_graded(page: Page) -> Iterator[str]:
    if page.short:
        return
    graders = set(re.findall(r"\bcheck\.((?!quiz\b)\w+(?:\.\w+)*)\(", page.program))
    if len(graders) < MIN_GRADERS:
        yield f"There are {len(graders)} graders ('check. ...'); a chapter has {MIN_GRADERS} or more."
    if not any("solution" in tags(cell) for cell in page.code):
        yield "No exercise has a solution."


@rule
def solutions_are_hidden(page: Page) -> Iterator[str]:
    for cell in page.code:
        titled = re.match(r"# ?@title Solution\b", cell.source) is not None
        if not (titled or "solution" in tags(cell)):
            continue
        if not titled:
            yield f"A solution begins with '# @title Solution ...'; this one with {begin(cell)}."
        if not {"solution", "hide-cell"} <= tags(cell):
            yield f"{begin(cell)} needs the tags 'solution' and 'hide-cell'."
        if cell.metadata.get("cellView") != "form":
            yield f'{begin(cell)} needs "cellView": "form" in its metadata, which hides it in Colab.'
        jupyter = cell.metadata.get("jupyter", {})
        if not (jupyter.get("source_hidden") and jupyter.get("outputs_hidden")):
            yield (
                f'{begin(cell)} needs "jupyter": {{"source_hidden": true, "outputs_hidden": true}} '
                "in its metadata, which hides it in JupyterLab."
            )


@rule
def has_a_quiz(page: Page) -> Iterator[str]:
    if page.short:
        return
    quizzes = [cell for cell in page.code if "check.quiz(" in cell.source]
    if not quizzes:
        yield "There is no quiz: check.quiz('...')."
    for cell in quizzes:
        if not any(
            {"text/html", "application/javascript"} & set(o.get("data", {})) for o in cell.outputs
        ):
            yield f"{begin(cell)} shows nothing; `make execute` stores the quiz."
