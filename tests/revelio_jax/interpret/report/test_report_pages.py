"""The report in a real browser, from disk and from a web server, without errors and without outside requests."""

import itertools
import re

import pytest

from revelio_jax.interpret import report
from tests.helpers import planted
from tests.helpers.browser import PHONE, served, until
from tests.revelio_jax.interpret.report.conftest import HOSTILE

PAGES = ("index.html", "latents.html", "latent.html#2", "compare.html")


@pytest.fixture(params=["disk", "server"])
def at(request):
    """A function that returns the address of a report's folder.

    Tests request it before ``visit``, so that pages are closed before their server.
    """
    if request.param == "disk":
        yield lambda folder: f"{folder.as_uri()}/"
        return
    servers = []

    def serve(folder):
        servers.append(served(folder))
        return servers[-1].__enter__()

    yield serve
    for server in servers:
        server.__exit__(None, None, None)


def from_disk(folder, page):
    return f"{folder.as_uri()}/{page}"


def rows(page):
    """Return the latents of the rows that exist, from top to bottom."""
    until(page, "document.querySelector('.row') && !document.querySelector('[aria-busy]')")
    until(page, "[...document.querySelectorAll('.row')].every(row => row.querySelector('.c-words'))")
    tops = "rows => rows.map(row => [row.getBoundingClientRect().top, Number(row.querySelector('a').text)])"
    return [number for _, number in sorted(page.eval_on_selector_all(".row", tops))]


def heading(page, latent):
    until(page, f"document.querySelector('h1')?.textContent.startsWith('Latent {latent}')")


@pytest.mark.slow
def test_links_lead_from_table_to_latent_to_similar_latent_and_back(at, visit, text_report):
    page = visit(at(text_report) + "index.html").page
    page.get_by_role("link", name="Browse the latents").click()
    assert rows(page)[:3] == [0, 2, 3]  # 1 is dead
    page.get_by_role("link", name="2", exact=True).click()
    heading(page, 2)
    assert page.locator("#top").is_visible()
    similar = page.locator("aside .named a").first
    number = similar.locator(".number").inner_text()
    similar.click()
    heading(page, number)
    page.locator(".back").click()
    assert int(number) in rows(page)  # the table scrolled back


@pytest.mark.slow
def test_the_address_keeps_search_and_sort(at, visit, text_report):
    visited = visit(at(text_report) + "latents.html")
    page = visited.page
    assert len(rows(page)) < 60  # only the visible ones of 149
    page.get_by_role("searchbox").fill("heart")
    until(page, "/^1 of/.test(document.querySelector('.status').textContent)")
    assert rows(page) == [0]
    page.get_by_role("searchbox").fill("")
    until(page, "/^149 of/.test(document.querySelector('.status').textContent)")
    page.get_by_role("columnheader", name="Frequency").get_by_role("button").click()
    until(page, "document.querySelector('[aria-sort=descending]')")
    assert rows(page)[0] == 0
    frequencies = page.eval_on_selector_all(
        ".row", "rows => rows.map(row => parseFloat(row.querySelector('.c-frequency').textContent))"
    )
    page.get_by_role("columnheader", name="Frequency").get_by_role("button").click()
    until(page, "document.querySelector('[aria-sort=ascending]')")
    assert rows(page)[-1] != 0
    assert min(frequencies) > 0
    page.locator("#sort").select_option("animal.purity")
    until(page, "location.hash.includes('animal.purity')")
    assert rows(page)[0] == 2
    assert re.search(r"sort=-animal.purity", page.url)
    again = visit(page.url).page
    assert rows(again)[0] == 2
    assert again.locator("#sort").input_value() == "animal.purity"
    assert not [url for url in visited.requests if "/columns/1" in url]  # not sorted by this column


def test_dead_latents_and_ranges(visit, text_report):
    page = visit(from_disk(text_report, "latents.html#dead=only")).page
    assert rows(page) == [1]
    page.locator("#dead").select_option("show")
    until(page, "/^150 of/.test(document.querySelector('.status').textContent)")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("At least").fill("100")  # in percent, as in the table; the two ends may be swapped
    page.get_by_label("At most").fill("50")
    page.get_by_role("button", name="Add").click()
    until(page, "/^1 of/.test(document.querySelector('.status').textContent)")
    assert rows(page) == [0]
    page.get_by_role("button", name="Remove the filter: Frequency 50 % to 100 %").click()
    until(page, "/^150 of/.test(document.querySelector('.status').textContent)")
    page.get_by_role("searchbox").fill("no such word")
    until(page, "/^0 of/.test(document.querySelector('.status').textContent)")
    page.get_by_role("button", name="Show all").click()
    until(page, "/^149 of/.test(document.querySelector('.status').textContent)")


def test_a_dead_latent_is_reported(visit, text_report):
    page = visit(from_disk(text_report, "latent.html#1")).page
    heading(page, 1)
    assert "This latent is dead" in page.inner_text("main")
    page.goto(from_disk(text_report, "latent.html#999"))
    page.reload()
    until(page, "/Unknown latent 999/.test(document.querySelector('main').textContent)")


@pytest.mark.slow
def test_keyboard_shortcuts_of_the_table(visit, text_report):
    page = visit(from_disk(text_report, "latents.html")).page
    rows(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("apple")
    until(page, "!/^149 of/.test(document.querySelector('.status').textContent)")
    found = rows(page)
    assert 1 < len(found) < 149
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == str(found[1])
    page.keyboard.press("Enter")
    heading(page, found[1])
    assert "q=apple" in page.url
    until(page, "document.querySelector('.walk .place').textContent.startsWith('2 of')")
    page.keyboard.press("j")  # within the search results
    heading(page, found[2])
    page.keyboard.press("k")
    heading(page, found[1])
    until(page, "document.querySelector('.walk .place').textContent.startsWith('2 of')")
    page.keyboard.press("b")
    assert rows(page) == found
    assert page.locator(".row.active a").inner_text() == str(found[1])


@pytest.mark.slow
def test_a_key_waits_for_the_links_of_the_visible_page(visit, text_report):
    page = visit(from_disk(text_report, "latent.html#2")).page
    until(page, "document.querySelector('.walk .place')?.textContent.startsWith('2 of')")  # 1 is dead
    page.evaluate("""() => {
        const known = ordered;
        window.ordered = async (...of) => {
            await new Promise((go) => setTimeout(go, 300));
            return known(...of);
        };
    }""")
    for key, latent in (("j", 3), ("j", 4), ("k", 3), ("k", 2)):
        page.keyboard.press(key)  # as soon as the previous page is visible
        heading(page, latent)
    assert page.locator("h1").inner_text().startswith("Latent 2")


def test_the_last_row_can_be_reached(visit, text_report):
    page = visit(from_disk(text_report, "latents.html")).page
    rows(page)
    page.locator(".rows").focus()
    page.keyboard.press("End")
    page.keyboard.press("End")
    assert rows(page)[-1] == 149
    assert page.evaluate("document.activeElement.textContent") == "149"


def test_help_lists_the_shortcuts(visit, image_report):
    page = visit(from_disk(image_report, "latent.html#2")).page
    heading(page, 2)
    page.keyboard.press("?")
    assert "show or hide heatmaps" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog')")
    page.keyboard.press("h")
    assert page.locator("#opacity").input_value() == "0"


def test_the_chosen_theme_is_kept(visit, image_report):
    page = visit(from_disk(image_report, "index.html"), dark=True).page
    luminance = (
        "getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0) / 765"
    )
    until(page, "document.querySelector('#theme')")
    assert page.evaluate(luminance) < 0.2
    page.locator("#theme").click()
    assert page.evaluate(luminance) > 0.8  # light, although the system is dark
    page.reload()
    until(page, "document.querySelector('#theme')")
    assert page.evaluate(luminance) > 0.8


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_pages_fit_a_phone(visit, text_report, image_report, kind, name):
    visited = visit(from_disk({"text": text_report, "image": image_report}[kind], name), PHONE)
    until(visited.page, "document.querySelector('main > *:not(noscript)')")
    visited.page.wait_for_load_state("networkidle")
    assert visited.overflow() == 0


@pytest.mark.slow
def test_hostile_prompts_are_shown_as_text(visit, text_report, text_store):
    found = set()
    size = planted.Size()
    prompts = [row["prompt"] for row in text_store.samples]
    for latent in (0, *range(2, 40)):
        page = visit(from_disk(text_report, f"latent.html#{latent}")).page
        heading(page, latent)
        assert page.title() == f"Latent {latent} of texts"
        assert page.eval_on_selector_all("main script, main img[src=x]", "all => all.length") == 0
        shown = page.eval_on_selector_all(
            "section[aria-labelledby=top] li .prompt",
            "all => all.map(p => p.textContent.replace(/\\s+/g, ''))",
        )
        assert len(shown) == size.top
        for number, prompt in enumerate(HOSTILE):
            start = "".join(prompt.lower().replace("\u202e", "[202E]").split())[:12]
            if any(start in text for text in shown):
                found.add(number)
        if found == set(range(len(HOSTILE))):
            break
    assert found == set(range(len(HOSTILE)))
    assert len(prompts) == size.samples


def test_every_token_shows_its_value(visit, text_report):
    page = visit(from_disk(text_report, "latent.html#2")).page
    heading(page, 2)
    peak = page.locator("section[aria-labelledby=top] li .token.peak").first
    peak.hover()
    assert re.fullmatch(r"[\d.]+ \(peak\), (padding, )?position \d+", page.locator("#tip").inner_text())
    peak.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text() != ""
    assert page.evaluate("document.activeElement.classList.contains('token')")
    heading(page, 2)  # the arrow key moved within the prompt
    shades = page.eval_on_selector_all(
        "section[aria-labelledby=top] li:first-child .token",
        "all => all.map(t => getComputedStyle(t).backgroundColor)",
    )
    assert len(set(shades)) > 1
    page.keyboard.press("c")
    until(page, "document.querySelector('.contexts .context .at .peak')")


def test_samples_are_grouped_by_language(visit, text_report):
    page = visit(from_disk(text_report, "latent.html#2")).page
    heading(page, 2)
    assert page.get_by_role("heading", name="By language").is_visible()
    assert page.locator(".stratum h3").all_inner_texts() == ["ar", "en"]


def test_images_have_heatmaps_and_crops(at, visit, image_report):
    page = visit(at(image_report) + "latent.html#2").page
    heading(page, 2)
    size = planted.Size()
    cards = page.locator(".card")
    assert cards.count() == size.top
    until(
        page,
        "[...document.querySelectorAll('.card img')].slice(0, 2).every(image => image.naturalWidth === 32)",
    )
    painted = (
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        ".filter((alpha, i) => i % 4 === 3 && alpha).length"
    )
    canvas = cards.first.locator("canvas")
    assert (canvas.get_attribute("width"), canvas.get_attribute("height")) == ("4", "4")
    assert canvas.evaluate(painted) == 3  # synthetic maps have three cells
    # The box marks the brightest cell.
    peak = (
        "card => ['.peakbox', '.frame'].map(name => card.querySelector(name).getBoundingClientRect())"
        ".map(({ x, y, width, height }) => [x + width / 2, y + height / 2, width])"
    )
    (x, y, width), (middle_x, middle_y, whole) = cards.first.evaluate(peak)
    assert width == pytest.approx(whole / 4, abs=1)
    assert abs(x - middle_x) < whole / 2
    assert abs(y - middle_y) < whole / 2
    page.locator("#opacity").fill("0")
    assert canvas.evaluate("canvas => getComputedStyle(canvas).opacity") == "0"
    assert cards.first.locator(".crop img").count() == 1
    assert page.locator(".stratum h3").all_inner_texts() == ["t = 25", "t = 500"]
    assert page.locator(".strip .peakbox").count() == size.weaker + 2 * size.of_stratum


@pytest.mark.slow
def test_compare_sorts_and_matches_latents(at, visit, image_report):
    page = visit(at(image_report) + "compare.html").page
    assert rows(page)
    scores = page.eval_on_selector_all(".row .c-score .figure", "all => all.map(score => Number(score.textContent))")
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("columnheader", name="A", exact=True).get_by_role("button").click()
    until(page, "document.querySelector('.c-latent[aria-sort=ascending]')")
    assert rows(page)[:2] == [0, 2]
    assert page.get_by_label("Match by").input_value() == "decoder"
    page.get_by_label("Match by").select_option("samples")
    until(page, "location.hash.includes('by=samples')")
    assert page.get_by_label("Match by").input_value() == "samples"
    assert rows(page)
    page.locator(".row a").first.click()
    heading(page, 0)


def test_compare_without_another_run_shows_the_command(visit, text_report):
    page = visit(from_disk(text_report, "compare.html")).page
    assert "--compare" in page.inner_text("main")
    assert page.get_by_role("link", name="Compare").count() == 0


def test_reports_without_labels_and_images(visit, tmp_path, config_of):
    store = planted.make_store(tmp_path / "store", "image", planted.Size(), images=False)
    found = planted.make(tmp_path / "run", store, "image", planted.Size())
    found.summary["labels"] = []
    folder = report.write(config_of(tmp_path / "run"), found)
    page = visit(from_disk(folder, "index.html")).page
    until(page, "/no labels/.test(document.querySelector('main').textContent)")
    page.goto(from_disk(folder, "latent.html#2"))
    heading(page, 2)
    assert page.get_by_text("image not saved").count() > 0
    assert page.locator(".card canvas").count() == planted.Size().top  # heatmaps are still shown


def test_a_missing_file_is_reported(visit, tmp_path, text_store, config_of):
    found = planted.make(tmp_path / "run", text_store, "text", planted.Size())
    folder = report.write(config_of(tmp_path / "run"), found)
    (folder / "data/latents/0.js").unlink()
    visited = visit(from_disk(folder, "latent.html#2"))
    until(visited.page, "/is missing/.test(document.querySelector('[role=alert]')?.textContent)")
    assert len(visited.errors) == 2  # the browser's own messages about the file
    visited.errors.clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_pages_have_landmarks_headings_and_names(visit, image_report, name):
    page = visit(from_disk(image_report, name)).page
    page.wait_for_load_state("networkidle")
    until(page, "document.querySelector('h1')")
    for role in ("banner", "main", "navigation", "contentinfo", "search"):
        assert page.get_by_role(role).count() == 1, role
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nameless = page.eval_on_selector_all(
        "button, select, input, a[href]",
        "all => all.filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length"
        " || e.title)).map(e => e.outerHTML)",
    )
    assert nameless == []
    assert page.eval_on_selector_all("main img:not([alt])", "all => all.length") == 0
