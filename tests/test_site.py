"""The built pages: links by reading the files, everything else in Chromium.

`make test-site` builds the book first. A page is opened once for all that can be asked of it in one load.
"""

import functools
import http.server
import itertools
import os
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
SITE = Path(os.environ.get("SITE", ROOT / "_build" / "html"))
HOW = (
    "The tests of the pages need Chromium or Chrome: 'apt install chromium' on Debian, "
    "'brew install --cask google-chrome' on macOS, or CHROME=/path/to/browser."
)
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", MAC)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
PARTS = 16  # into which the pages are dealt, for two processes to share
# What axe finds and others have to mend: (rule, pattern of the element, why). As narrow as can be.
NOT_OURS: list[tuple[str, str, str]] = []

CUT_FORMULAS = """
[...document.querySelectorAll("div.math mjx-math")].filter((formula) =>
  formula.getBoundingClientRect().left < formula.closest("div.math").getBoundingClientRect().left - 1
).length
"""

# A page of code holds thousands of coloured words. axe looks at each, though the words of one colour in one kind of
# place are alike: the first of them stays, of the others the text.
ONE_OF_EACH = """
() => {
  const seen = new Set();
  for (const part of document.querySelectorAll(".highlight span, .sig span, .sig em, code, code span")) {
    const place = part.closest("a, th, td, dt, dd, details, .admonition, .cell_input, .cell_output");
    const kind = [part.tagName, part.className, place?.tagName, place?.className].join();
    if (seen.has(kind) && !part.id && !part.querySelector("[id], a")) part.replaceWith(...part.childNodes);
    else seen.add(kind);
  }
  document.body.normalize();
}
"""

# Each solution is hidden, shows itself on a click, and hides again.
SOLUTIONS = """
() => [...document.querySelectorAll(".cell.tag_solution")].flatMap((cell, i) => {
  const code = cell.querySelector(".cell_input"), summary = cell.querySelector("summary");
  const states = [];
  for (let turn = 0; turn < 3; turn++) {
    states.push(`${code.checkVisibility()}, ${summary.innerText.trim()}`);
    summary.click();
  }
  summary.click();
  const wanted = ["false, Show the solution", "true, Hide the solution", "false, Show the solution"];
  return states.join() === wanted.join() ? [] : [`solution ${i + 1} goes through ${states.join("; ")}`];
})
"""

TIGHT_TABLES = """
[...document.querySelectorAll(".cell_output td")].some((cell) => parseFloat(getComputedStyle(cell).paddingLeft) < 4)
"""


class Page(HTMLParser):
    """What a page points to, what can be pointed to in it, and what its pictures are called."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.files: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for key in ("id", "name") if tag == "a" else ("id",):
            if found.get(key):
                self.ids.add(str(found[key]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "img":
            self.images.append(found)
        for key in ("src", "href"):
            if tag in ("img", "script", "link") and found.get(key):
                self.files.append(str(found[key]))


@functools.cache
def read(name: str) -> Page:
    return Page((SITE / name).read_text(encoding="utf-8"))


@functools.cache
def pages() -> list[str]:
    """Every page; the site's bare index only sends the reader to the first one."""
    if not (SITE / "intro.html").exists():
        pytest.fail("There is no built book to look at: run make book", pytrace=False)
    found = (path.relative_to(SITE) for path in SITE.rglob("*.html"))
    return sorted(p.as_posix() for p in found if p.parts[0] not in {"_static", "_sources"})


def chapters() -> list[str]:
    """The pages that are made from notebooks."""
    return [name for name in pages() if (ROOT / name).with_suffix(".ipynb").exists()]


def source(name: str) -> str:
    """The notebook of a page; empty if it is made from something else."""
    path = (ROOT / name).with_suffix(".ipynb")
    return path.read_text() if path.exists() else ""


def expect_none(wrong: list[str]) -> None:
    """Fail with a list a person can read, each line once."""
    if wrong:
        pytest.fail("\n".join(sorted(set(wrong))), pytrace=False)


# --- without a browser -----------------------------------------------------------------------------


def test_links_inside_the_site_lead_somewhere() -> None:
    wrong = []
    for name in pages():
        page = read(name)
        for link in page.links + page.files:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, fragment = urldefrag(urljoin(name, link))
            target, fragment = unquote(target) or name, unquote(fragment)
            target = urlparse(target).path
            if not (SITE / target).is_file():
                wrong.append(f"{name}: {link} (no such file)")
            elif fragment and target.endswith(".html") and fragment not in read(target).ids:
                wrong.append(f"{name}: {link} (no such place on that page)")
    expect_none(wrong)


def test_links_to_other_sites_are_https_and_well_formed() -> None:
    wrong = []
    for name in pages():
        page = read(name)
        for link in page.links:
            parts = urlparse(link)
            if parts.scheme or link.startswith("//"):
                well_formed = re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc) and " " not in link
                if parts.scheme != "https" or not well_formed:
                    wrong.append(f"{name}: {link}")
        wrong += [f"{name} loads {f}" for f in page.files if urlparse(f).netloc]
    expect_none(wrong)


def test_each_picture_says_what_it_shows() -> None:
    wrong = []
    for name in pages():
        for image in read(name).images:
            alt = (image.get("alt") or "").strip()
            themes = "logo" in (image.get("src") or "")
            if not themes and (len(alt) < 12 or "/" in alt or alt.endswith((".png", ".svg"))):
                wrong.append(f"{name}: {image.get('src')} has the alternative text {alt!r}")
    expect_none(wrong)


def test_table_of_contents_names_every_chapter() -> None:
    toc = re.findall(r"^\s*- file: (\S+)", (ROOT / "_toc.yml").read_text(), re.M)
    missing = [name for name in toc if f"{name}.html" not in pages()]
    assert not missing
    intro = (SITE / "intro.html").read_text()
    for section in ("background", "loss", "cleaning", "attacks", "repair", "applications"):
        assert re.search(rf'toctree-l1.*?href="[^"]+\.html">[^<]*{section}', intro, re.S | re.I), (
            section
        )


def test_chapters_that_are_not_written_say_so() -> None:
    """A page under chapters/ is a notebook, or a page that says that it is not written yet."""
    for path in (ROOT / "chapters").rglob("*.md"):
        twin = path.with_suffix(".ipynb")
        assert not twin.exists(), f"{path} and {twin} both claim one place"
        assert "is not written yet" in path.read_text(), path


def test_readme_tells_which_chapters_are_written() -> None:
    row = r"^\|.*?\]\((chapters/[\w/]+)\.(md|ipynb)\).*?\|\s*([\w ]+?)\s*\|$"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.M)
    wrong = []
    for stem, ending, state in rows:
        written = (ROOT / f"{stem}.ipynb").exists()
        if (state == "written") != written or (ending == "ipynb") != written:
            wrong.append(f"{stem}: {state} ({ending})")
    expect_none(wrong)
    toc = re.findall(r"^\s*- file: (chapters/\S+)", (ROOT / "_toc.yml").read_text(), re.M)
    assert {stem for stem, _, _ in rows} == set(toc)


def test_bibliography_holds_every_cited_work() -> None:
    bib = (ROOT / "references.bib").read_text()
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", bib, re.S)
    known = {key for key, _ in entries}
    for key, body in entries:
        assert re.search(r"^\s*(doi|eprint|url) = ", body, re.M), f"{key} has no doi, eprint or url"
    shown = {i.removeprefix("id") for i in read("bibliography.html").ids}
    cited = set()
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "chapters").rglob("*.md"),
        *(ROOT / "reference").glob("*.md"),
    ]:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text()):
            cited |= {key.strip() for key in keys.split(",")}
    assert cited, "no citation was found: has the form of citations changed?"
    assert cited <= known, cited - known
    text = (SITE / "bibliography.html").read_text()
    assert text.count('class="citation"') >= len(known), "works are missing from the bibliography"
    assert shown


def test_general_index_lists_functions_and_terms() -> None:
    ids = read("genindex.html").links
    assert any("#modelsec." in link for link in ids), "no function is in the index"
    assert any("#term-" in link for link in ids), "no term of the glossary is in the index"
    assert any("genindex" in link for link in read("intro.html").links), (
        "nothing leads to the index"
    )


def test_every_module_is_on_a_reference_page() -> None:
    shown, wrong = set(), []
    for name in pages():
        if name.startswith("reference/"):
            shown |= read(name).ids
    # the command line has a page of its own; studies are run by name, not imported
    elsewhere = {"__main__.py", "studies"}
    for path in (ROOT / "modelsec").rglob("*.py"):
        if elsewhere & set(path.parts):
            continue
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        module = module.removesuffix(".__init__")
        exported = re.search(r"^__all__ = \[(.*?)\]", path.read_text(), re.S | re.M)
        names = re.findall(r'"(\w+)"', exported[1]) if exported else []
        for name in names:
            here = re.search(rf"^(def|class) {name}\b|^{name}\b.*=", path.read_text(), re.M)
            if here and f"{module}.{name}" not in shown:
                wrong.append(f"{module}.{name} is on no page of reference/")
    expect_none(wrong)


def test_next_and_previous_walk_through_the_book() -> None:
    toc = re.findall(r"^\s*- file: (\S+)", (ROOT / "_toc.yml").read_text(), re.M)
    wanted = ["intro.html", *(f"{name}.html" for name in toc)]
    for here, there in itertools.pairwise(wanted):
        for page, side, other in ((here, "right-next", there), (there, "left-prev", here)):
            found = re.search(rf'<a class="{side}"\s+href="([^"]+)"', (SITE / page).read_text())
            assert found, f"{page} has no link {side}"
            assert urljoin(page, found[1]) == other, f"{page}: {side} is {found[1]}, not {other}"


def numbers(name: str, pattern: str) -> list[str]:
    """The numbers that a page shows where the pattern matches, without their last dot."""
    text = (SITE / name).read_text()
    return [found.rstrip(". ") for found in re.findall(pattern, text, re.S)]


def test_the_chapters_of_a_part_are_numbered_one_after_another() -> None:
    """In the menu and in the heading; the page that opens the part has the number before the dot."""
    toc = (ROOT / "_toc.yml").read_text()
    parts = re.findall(r"- file: (\S+)\n\s+sections:\n((?:\s+- file: \S+\n)+)", toc)
    parts = [(opener, re.findall(r"file: (\S+)", below)) for opener, below in parts]
    parts = [part for part in parts if part[0].startswith("chapters/")]
    assert len(parts) == 3
    heading, section = (
        rf'<h{level}><span class="section-number">([\d. ]+)</span>' for level in "12"
    )
    for opener, below in parts:
        (first,) = numbers(f"{opener}.html", heading)
        wanted = [f"{first}.{k}" for k in range(1, len(below) + 1)]
        assert [numbers(f"{name}.html", heading) for name in below] == [[n] for n in wanted]
        links = rf'class="reference internal" href="{Path(opener).name}/\w+\.html">([\d.]+) '
        assert numbers(f"{opener}.html", links) == wanted, f"{opener}: the menu"
        assert not numbers(f"{opener}.html", section), f"{opener}: its own sections have numbers"
        written = [name for name in below if (ROOT / f"{name}.ipynb").exists()]
        for name in written:  # a chapter's own sections have theirs
            number = numbers(f"{name}.html", heading)[0]
            assert numbers(f"{name}.html", section)[:2] == [f"{number}.1", f"{number}.2"]


# --- in a browser ----------------------------------------------------------------------------------


def find_browser() -> str | None:
    wanted = os.environ.get("CHROME")
    return shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, NAMES)), None)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a word."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    pages()
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(HOW)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


def open_tab(browser, base: str, **options):
    """A tab that notes whatever goes wrong in it, and lets no request leave the site."""
    context = browser.new_context(**options)
    tab = context.new_page()
    tab.problems = []

    def refuse(route) -> None:
        tab.problems.append(f"asks another host: {route.request.url}")
        route.abort()

    context.route(re.compile(rf"^(?!{re.escape(base)}|data:|blob:)"), refuse)
    tab.on("pageerror", lambda error: tab.problems.append(f"JavaScript: {error}"))
    tab.on(
        "console",
        lambda m: m.type in ("error", "warning") and tab.problems.append(f"console: {m.text}"),
    )
    tab.on("response", lambda r: r.status >= 400 and tab.problems.append(f"{r.status}: {r.url}"))
    return tab


@pytest.fixture(scope="module")
def tab(browser, base: str):
    tab = open_tab(browser, base, viewport=DESK)
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield tab
    tab.context.close()


def settle(tab) -> None:
    """Wait until formulas are set, quizzes drawn and pictures loaded."""
    tab.wait_for_load_state("load")
    if tab.locator(".math").count():
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.math')].every((m) => m.querySelector('mjx-container'))"
        )
    tab.wait_for_function("() => [...document.images].every((i) => i.complete)")


def quizzes(tab) -> list[str]:
    """Answer the first and the last question, which stand for all, by keyboard and by mouse."""
    from playwright.sync_api import TimeoutError as NoAnswer

    try:
        tab.wait_for_selector(".Quiz .Feedback[aria-live]", state="attached")
        for quiz in (tab.locator(".Quiz").first, tab.locator(".Quiz").last):
            quiz.locator(".MCButton[data-correct=true] input").first.focus()
            tab.keyboard.press("Space")
            quiz.locator(".Feedback.correct").wait_for()
            quiz.locator(".MCButton[data-correct=false]").first.click()
            quiz.locator(".Feedback.incorrect").wait_for()
    except NoAnswer as error:
        return [f"a quiz does not answer: {error.message.splitlines()[0]}"]
    return []


def faults(tab, rules: list[str] | None = None) -> list[str]:
    """What axe-core calls serious or critical on the page that is open."""
    from axe_playwright_python.sync_playwright import Axe

    options: dict[str, object] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = []
    for violation in Axe().run(tab, options=options).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            for node in violation["nodes"]:
                rule, element = violation["id"], node["html"]
                if not any(rule == r and re.search(p, element) for r, p, _ in NOT_OURS):
                    why = node["failureSummary"].splitlines()[1].strip()
                    found.append(f"axe, {rule}: {element[:160]} ({why})")
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_every_page_loads_whole(tab, base: str, part: int) -> None:
    """One load a page: no error, no request to another host, no broken picture or formula.

    Solutions open and close, a quiz answers to mouse and keyboard. Then the width of a phone, and
    axe-core in light and dark.
    """
    wrong, seen_in_the_dark = [], False
    for name in pages()[part::PARTS]:
        if name == "index.html":  # it only sends the reader on
            continue
        tab.problems.clear()
        tab.set_viewport_size(DESK)
        tab.goto(base + name)
        settle(tab)
        tab.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        here = tab.evaluate(SOLUTIONS) + (quizzes(tab) if "check.quiz(" in source(name) else [])
        here += tab.problems
        broken = "() => [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src)"
        here += [f"broken picture: {src}" for src in tab.evaluate(broken)]
        if tab.locator("mjx-merror, [data-mjx-error]").count():
            here.append("a formula that cannot be set")
        tab.set_viewport_size(PHONE)
        width = tab.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            here.append(f"{width} pixels wide on a phone of {PHONE['width']}")
        # a wide formula may be scrolled, but not begin where nobody can scroll to
        if tab.evaluate(TIGHT_TABLES):
            here.append("a printed table has no room between its columns")
        if cut := tab.evaluate(CUT_FORMULAS):
            here.append(f"{cut} formulas are cut off at their left end on a phone")
        tab.set_viewport_size(DESK)
        tab.evaluate(ONE_OF_EACH)
        here += faults(tab)
        # Pages that are still to be written look alike: one of them is enough in the dark.
        alike = tab.locator(".not-written").count() > 0
        if not (alike and seen_in_the_dark):
            seen_in_the_dark = seen_in_the_dark or alike
            tab.evaluate("document.documentElement.dataset.theme = 'dark'")
            here += [f"in the dark: {fault}" for fault in faults(tab, ["color-contrast"])]
        wrong += [f"{name}: {fault}" for fault in here]
    expect_none(wrong)


def test_phone_has_a_menu(browser, base: str) -> None:
    phone = open_tab(browser, base, viewport=PHONE, is_mobile=True, has_touch=True)
    for name in ("intro.html", "glossary.html", "chapters/loss.html"):
        phone.goto(base + name)
        settle(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
    phone.goto(base + "glossary.html")
    menu = phone.locator(".bd-sidebar-primary")
    assert not menu.is_visible()
    phone.locator("button.primary-toggle:visible").first.click()
    menu.wait_for(state="visible")
    menu.get_by_text("Bibliography").click()
    phone.wait_for_url("**/bibliography.html")
    phone.context.close()


def test_search_finds_a_word(tab, base: str) -> None:
    tab.problems.clear()
    tab.goto(base + "search.html?q=margin")
    # results come one by one: wait for the glossary's
    tab.wait_for_selector('#search-results ul.search li a[href*="glossary.html"]')
    assert not tab.problems
    tab.goto(base + "search.html?q=xyzzyplugh")
    tab.wait_for_function(
        "() => /did not match/.test(document.querySelector('#search-results').innerText)"
    )
    assert not tab.locator("#search-results ul.search li a").count()


def test_pages_opened_as_files_work(browser) -> None:
    """`make book` ends by naming a file to open: no server, and no script may fail for want of one."""
    start = SITE.resolve().as_uri() + "/"
    tab = open_tab(browser, start, viewport=DESK)
    for name in ("intro.html", "chapters/loss.html"):
        tab.goto(start + name)
        settle(tab)
    tab.goto(start + "search.html?q=margin")
    tab.wait_for_selector("#search-results ul.search li a")
    tab.wait_for_timeout(500)  # for excerpts that would fail
    expect_none(tab.problems)
    tab.context.close()


def test_theme_stays_dark(browser, base: str) -> None:
    tab = open_tab(browser, base, viewport=DESK, color_scheme="light")
    tab.goto(base + "intro.html")
    root = tab.locator("html")
    assert root.get_attribute("data-theme") == "light"
    for _ in range(3):
        tab.locator("button.theme-switch-button:visible").first.click()
        if root.get_attribute("data-theme") == "dark":
            break
    assert root.get_attribute("data-theme") == "dark"
    tab.goto(base + "glossary.html")
    assert root.get_attribute("data-theme") == "dark"
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 64, ground
    tab.context.close()


def test_solutions_are_tagged() -> None:
    """Whether they are hidden is seen as each page is loaded; here, that there are some to hide."""
    for name in chapters():
        assert ("@title Solution" in source(name)) == (
            "tag_solution" in (SITE / name).read_text()
        ), name


def test_colab_opens_the_notebook_of_the_page() -> None:
    config = (ROOT / "_config.yml").read_text()
    slug = re.search(r"url: https://github\.com/(\S+)", config)[1]
    for name in chapters():
        notebook = Path(name).with_suffix(".ipynb").as_posix()
        wanted = f"https://colab.research.google.com/github/{slug}/blob/main/{notebook}"
        assert wanted in read(name).links, f"{name} has no link to {wanted}"
    for name in set(pages()) - set(chapters()) - {"intro.html"}:
        links = [x for x in read(name).links if x.startswith("https://colab.")]
        assert not links, f"{name} is no notebook, but offers {links}"


def test_copy_button_copies_the_code(tab, base: str) -> None:
    tab.goto(base + "intro.html")
    block = tab.locator("div.highlight").filter(has_text="@software").first
    block.hover()
    block.locator("button.copybtn").click()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip()
