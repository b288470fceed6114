"""Every notebook keeps to the policy, and every rule of the policy refuses a planted fault."""

import base64
import copy
import struct
import zlib
from collections.abc import Callable

import execute
import nbformat
import pytest
import slug
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_policy import CHAPTERS, MAX_BYTES, RULES, Page

NOTEBOOKS = sorted(p for p in CHAPTERS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(CHAPTERS).as_posix())
@pytest.mark.parametrize("name", RULES)
def test_chapter_keeps_the_rule(name, path):
    problems = list(RULES[name](Page.read(path)))
    assert not problems, "\n".join(problems)


# A notebook without fault, and what can be wrong with it


def png() -> str:
    """Return a figure of one black pixel, as notebooks store it."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"tEXt", b"Software\0drawn by 1.0"),
    ]
    chunks += [(b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    return base64.b64encode(data).decode()


def figure() -> nbformat.NotebookNode:
    return new_output("display_data", {"image/png": png(), "text/plain": "<Figure size 640x480>"})


def good_page() -> Page:
    def code(source, *outputs, tags=(), **metadata):
        return new_code_cell(
            source, outputs=list(outputs), metadata={"tags": list(tags), **metadata}
        )

    def says(text):
        return new_output("stream", name="stdout", text=text)

    exercises = [
        code(f"check.{name}(mine)", says("Not done yet.\n")) for name in ("fgsm", "clip", "ball")
    ]
    cells = [
        new_markdown_cell("# Loss\n\n*How far can one gradient lead a model astray?*"),
        new_markdown_cell(
            "## At a glance\n\n| | |\n|---|---|\n| Objectives | derive FGSM |\n| Prerequisites | "
            "[the background](background.ipynb) |\n| Time | 30 minutes to read, 1 to run |\n| Threat | white box |"
        ),
        code(slug.setup_cell(slug.current())),
        code("import modelsec\nfrom modelsec import check\n\nmodelsec.seed_everything(0)"),
        new_markdown_cell(
            "With $\\epsilon = 0.25$ and `steps=0.125` most digits flip: see [arXiv:1412.6572](https://arxiv.org/abs/1412.6572)."
            "\n\n```python\nx = 0.125\n```"
        ),
        code(
            "plot()", figure(), mystnb={"image": {"alt": "Ten digits before and after the attack"}}
        ),
        *[
            code(f'claim("loss.{n}", "PGD leaves {{}} right", x)', says("PGD leaves 0.08 right\n"))
            for n in "abc"
        ],
        new_markdown_cell("## Where it breaks\n\nOften."),
        new_markdown_cell(
            "## Exercises\n\n### 1. Predict\n\n<details><summary>Hint</summary>Think.</details>"
        ),
        *exercises,
        code(
            "# @title Solution 1\nmine = fgsm",
            tags=["solution", "hide-cell"],
            cellView="form",
            jupyter={"source_hidden": True, "outputs_hidden": True},
        ),
        new_markdown_cell("## Quiz"),
        code('check.quiz("loss")', new_output("display_data", {"text/html": "<div>Which?</div>"})),
        new_markdown_cell("## Take-aways\n\n1. It works.\n\n## Further reading\n\nMuch."),
    ]
    for number, cell in enumerate(c for c in cells if c.cell_type == "code"):
        cell.execution_count = number + 1
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    notebook = new_notebook(cells=cells, metadata=copy.deepcopy(execute.METADATA))
    return Page(notebook, CHAPTERS / "sample.ipynb")


FAULTS: list[tuple[str, str, Callable[[Page], object]]] = []


def fault(rule: str):
    """Register a function that spoils a good page, and the rule that must notice."""

    def register(function):
        FAULTS.append((rule, function.__name__, function))
        return function

    return register


def cell(page: Page, begin: str) -> nbformat.NotebookNode:
    return next(c for c in page.notebook.cells if c.source.startswith(begin))


def drop(page: Page, begin: str) -> None:
    page.notebook.cells.remove(cell(page, begin))


def write(page: Page, text: str, **metadata) -> None:
    """Add prose."""
    page.notebook.cells.append(new_markdown_cell(text, metadata=metadata))


def show(page: Page, text: str, mime: str = "text/plain", begin: str = "plot") -> None:
    """Add an output to a cell."""
    cell(page, begin).outputs.append(new_output("display_data", {mime: text}))


@fault("executed_once_from_top_to_bottom")
def cell_never_run(page):
    page.code[-1].execution_count = None


@fault("executed_once_from_top_to_bottom")
def cells_run_out_of_order(page):
    page.code[2].execution_count, page.code[3].execution_count = 4, 3


@fault("executed_once_from_top_to_bottom")
def run_twice(page):
    for c in page.code:
        c.execution_count += 20


@fault("no_empty_cell")
def empty_cell(page):
    write(page, " \n")


@fault("setup_cell_comes_first")
def no_setup_cell(page):
    drop(page, "# Set up")


@fault("setup_cell_comes_first")
def setup_cell_of_another_repository(page):
    page.code[0].source = slug.setup_cell("someone/else")


@fault("setup_cell_comes_first")
def setup_cell_that_prints(page):
    show(page, "Collecting torch", begin="# Set up")


@fault("installs_nothing_else")
def another_installation(page):
    cell(page, "plot").source += "\n!pip install torch"


@fault("is_seeded")
def no_seed(page):
    cell(page, "import modelsec").source = "import modelsec"


@fault("no_error_or_warning_is_stored")
def stored_error(page):
    cell(page, "plot").outputs.append(
        new_output("error", ename="ValueError", evalue="eps", traceback=[])
    )


@fault("no_error_or_warning_is_stored")
def stored_stderr(page):
    cell(page, "plot").outputs.append(new_output("stream", name="stderr", text="careful"))


@fault("no_error_or_warning_is_stored")
def printed_warning(page):
    show(page, "UserWarning: lr_scheduler")


@fault("no_error_or_warning_is_stored")
def printed_traceback(page):
    show(page, "Traceback (most recent call last)")


@fault("no_failure_is_hidden")
def tag_that_lets_failures_pass(page):
    cell(page, "plot").metadata.tags = ["nbval-raises-exception"]


@fault("outputs_are_the_same_everywhere")
def seconds(page):
    show(page, "trained in 3.2 s")


@fault("outputs_are_the_same_everywhere")
def seconds_in_a_table(page):
    show(page, "<td>12</td><td>40 seconds</td>", "text/html")


@fault("outputs_are_the_same_everywhere")
def memory_address(page):
    show(page, "<Net object at 0x7f00ab>".replace("<", "(").replace(">", ")"))


@fault("outputs_are_the_same_everywhere")
def progress_bar(page):
    show(page, "10%\r20%\r30%")


@fault("outputs_are_the_same_everywhere")
def widget(page):
    cell(page, "plot").outputs.append(
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})
    )


@fault("no_place_of_one_machine")
def absolute_path_in_source(page):
    cell(page, "plot").source = 'plot("/home/me/digits.png")'


@fault("no_place_of_one_machine")
def absolute_path_in_output(page):
    show(page, "File '/Users/me/modelsec/data.py'")


@fault("no_place_of_one_machine")
def windows_path(page):
    write(page, "Open `C:\\Users\\me`.")


@fault("no_place_of_one_machine")
def local_server(page):
    write(page, "Open http://localhost:8888.")


@fault("metadata_is_normalised")
def no_language(page):
    del page.notebook.metadata["language_info"]


@fault("metadata_is_normalised")
def kernel_of_one_machine(page):
    page.notebook.metadata.kernelspec.name = "my-env"


@fault("metadata_is_normalised")
def doubled_identifier(page):
    page.notebook.cells[1].id = page.notebook.cells[0].id


@fault("metadata_is_normalised")
def execution_times(page):
    page.code[1].metadata.execution = {"iopub.execute_input": "2026-01-01"}


@fault("small_enough")
def too_large(page):
    cell(page, "plot").outputs[0].data["text/plain"] = "x" * MAX_BYTES


@fault("opens_with_title_and_question")
def no_title(page):
    page.notebook.cells[0].source = "## Loss\n\n*How?*"


@fault("opens_with_title_and_question")
def two_titles(page):
    write(page, "# Another")


@fault("opens_with_title_and_question")
def no_question(page):
    page.notebook.cells[0].source = "# Loss\n\nThis chapter is about loss."


@fault("has_at_a_glance_table")
def no_card(page):
    drop(page, "## At a glance")


@fault("has_at_a_glance_table")
def card_without_table(page):
    cell(
        page, "## At a glance"
    ).source = "## At a glance\n\nObjectives, prerequisites, minutes, threat."


@fault("has_at_a_glance_table")
def card_without_minutes(page):
    card = cell(page, "## At a glance")
    card.source = card.source.replace("30 minutes to read, 1 to run", "short")


@fault("has_the_closing_sections")
def no_limits(page):
    drop(page, "## Where it breaks")


@fault("markdown_is_plain")
def role(page):
    write(page, "See {doc}`background`.")


@fault("markdown_is_plain")
def directive(page):
    write(page, "```{note}\nCareful.\n```")


@fault("markdown_is_plain")
def colon_fence(page):
    write(page, ":::{tip}\nCareful.\n:::")


@fault("markdown_is_plain")
def label(page):
    write(page, "(here)=\n\nText.")


@fault("no_measured_number_is_typed")
def typed_decimal(page):
    write(page, "The accuracy falls to 0.08 at once.")


@fault("no_measured_number_is_typed")
def typed_percentage(page):
    write(page, "It falls to 8% at once.")


@fault("no_measured_number_is_typed")
def typed_number_not_on_the_list(page):
    write(page, "It falls from 0.93 to 0.08.", modelsec={"typed_numbers": ["0.93"]})


@fault("links_lead_somewhere")
def broken_link(page):
    write(page, "See [the next chapter](no-such-chapter.ipynb#title).")


@fault("figures_have_alt_text")
def no_alt_text(page):
    del cell(page, "plot").metadata["mystnb"]


@fault("figures_have_alt_text")
def path_as_alt_text(page):
    cell(page, "plot").metadata.mystnb.image.alt = "_images/figure-of-the-attack.png"


@fault("figures_have_alt_text")
def image_without_alt_text(page):
    write(page, "![](../_static/logo.svg)")


@fault("figures_are_png")
def svg_figure(page):
    show(page, "<svg></svg>", "image/svg+xml")


@fault("cells_are_short")
def long_cell(page):
    cell(page, "plot").source = "\n\n".join(f"x{n} = {n}" for n in range(21))


@fault("measures_what_it_says")
def too_few_claims(page):
    drop(page, "claim(")


@fault("measures_what_it_says")
def short_page_without_any_check(page):
    page.short = True
    for _ in "abc":
        drop(page, "claim(")


@fault("exercises_are_graded")
def too_few_graders(page):
    cell(page, "check.ball").source = "check.fgsm(mine)"


@fault("exercises_are_graded")
def no_solution(page):
    drop(page, "# @title Solution")


@fault("solutions_are_hidden")
def solution_in_the_open(page):
    cell(page, "# @title Solution").metadata.tags = ["solution"]


@fault("solutions_are_hidden")
def untagged_solution(page):
    cell(page, "# @title Solution").metadata.tags = []


@fault("solutions_are_hidden")
def solution_open_in_colab(page):
    del cell(page, "# @title Solution").metadata["cellView"]


@fault("solutions_are_hidden")
def solution_open_in_jupyterlab(page):
    cell(page, "# @title Solution").metadata["jupyter"] = {"source_hidden": True}


@fault("solutions_are_hidden")
def solution_without_title(page):
    cell(page, "# @title Solution").source = "mine = fgsm"


@fault("has_a_quiz")
def no_quiz(page):
    drop(page, "check.quiz")


@fault("has_a_quiz")
def quiz_that_shows_nothing(page):
    cell(page, "check.quiz").outputs = []


@pytest.mark.parametrize("name", RULES)
def test_good_notebook_passes(name):
    assert list(RULES[name](good_page())) == []


@pytest.mark.parametrize(("rule", "name", "spoil"), FAULTS, ids=[name for _, name, _ in FAULTS])
def test_rule_refuses_the_fault(rule, name, spoil):
    page = good_page()
    spoil(page)
    assert list(RULES[rule](page)), f"{rule} does not notice {name}"


def test_every_rule_has_a_fault():
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


def test_short_pages_owe_no_exercises():
    page = good_page()
    page.short = True
    for begin in (
        "check.fgsm",
        "check.clip",
        "check.ball",
        "check.quiz",
        "# @title",
        "## Exercises",
        "## Quiz",
    ):
        drop(page, begin)
    for name in (
        "exercises_are_graded",
        "has_a_quiz",
        "has_the_closing_sections",
        "solutions_are_hidden",
    ):
        assert list(RULES[name](page)) == []


def test_numbers_that_are_not_measured():
    page = good_page()
    write(page, "With its 95% interval, or a 99% confidence interval.")
    write(page, "They report 95% there.", modelsec={"typed_numbers": ["95%"]})
    assert list(RULES["no_measured_number_is_typed"](page)) == []
