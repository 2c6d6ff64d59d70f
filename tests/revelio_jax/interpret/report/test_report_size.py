"""With 65,536 latents, each page first loads less than a megabyte."""

import pytest

from revelio_jax.interpret import report
from tests.helpers import planted
from tests.helpers.browser import served, until

LATENTS = 65_536
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory, image_store, config_of):
    """The address of a report with 65,536 latents.

    Latents have few samples, so that the report is written in seconds; the table has all its rows and columns.
    """
    folder = tmp_path_factory.mktemp("large")
    size = planted.Size(LATENTS, top=3, weaker=0, of_stratum=0, neighbors=2)
    found = planted.make(folder / "run", image_store, "image", size, stratum="")
    with served(report.write(config_of(folder / "run"), found)) as url:
        yield url


@pytest.mark.slow
def test_pages_first_load_less_than_a_megabyte(visit, large):
    for name in ("index.html", "latents.html", f"latent.html#{LATENTS - 1}"):
        visited = visit(large + name)
        visited.page.wait_for_selector("main h1")
        assert 50_000 < visited.loaded() < LIMIT  # style sheet and scripts alone exceed 50 kB


@pytest.mark.slow
def test_the_table_loads_only_visible_rows(visit, large):
    visited = visit(large + "latents.html")
    page = visited.page
    page.wait_for_selector(".row .c-words")
    before = visited.loaded()
    page.locator("#sort").select_option("frequency")
    until(page, "document.querySelector('.row a')?.textContent === '0'")
    page.wait_for_selector(".row .c-words")
    assert visited.loaded() - before < LIMIT  # one column and the visible rows
    page.locator("#sort").select_option("latent")
    until(page, "!location.hash.includes('frequency')")
    page.locator(".rows").focus()
    page.keyboard.press("End")
    page.keyboard.press("End")
    until(page, f"document.activeElement.textContent === '{LATENTS - 1}'")
    assert page.locator(".row").count() < 60
    page.get_by_role("searchbox").fill(f"#{LATENTS - 3}")
    until(page, "/^1 of/.test(document.querySelector('.status').textContent)")
    assert page.locator(".row a").inner_text() == str(LATENTS - 3)
