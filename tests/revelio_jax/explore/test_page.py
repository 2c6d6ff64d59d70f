"""The page in a browser: active latents, search, steering, comparison, errors."""

import re
import threading

import numpy as np
import pytest
import torch

from revelio_jax.explore.requests import SteeringRequest
from tests.helpers.browser import PHONE
from tests.revelio_jax.explore.conftest import decode

TEXT, DENOISER, FLUX = "clip.layer.2", "unet.up_blocks.1", "t5.block.2"
APPLE, TIGER = "glossy 3d emoji of red apple", "flat emoji of tiger"


def run_program(program: str) -> np.ndarray:
    """Return the image that a program of the page samples."""
    names: dict = {}
    exec(re.sub(r"^image\.save.*$", "", program, flags=re.M), names)
    return np.asarray(names["image"])


def strongest(ui, prompt: str = APPLE) -> int:
    return ui.backend.find_active(ui.request(prompt)).strongest(1)[0]["latent"]


@pytest.mark.slow
def test_active_latents_are_listed_and_shade_the_tokens(open_page):
    ui = open_page(TEXT)
    ui.draw_and_wait(APPLE)
    active = ui.backend.find_active(ui.request(APPLE))
    rows = active.strongest(40)
    shown = ui.page.locator("#firing [data-latent]")
    assert [int(shown.nth(i).get_attribute("data-latent")) for i in range(5)] == [row["latent"] for row in rows[:5]]
    shown.first.click()
    ui.page.locator("#tokens .heat").first.wait_for()
    values = active.map(rows[0]["latent"])[0]
    tokens = ui.page.locator("#tokens [data-token]")
    texts = [text.split("\n")[0] for text in tokens.all_inner_texts()]
    assert texts == ["start", "glossy", "3", "d", "emoji", "of", "red", "apple", "end"]
    for i in range(len(texts)):
        assert ("heat" in tokens.nth(i).get_attribute("class").split()) == (values[i] > 0)
    tokens.nth(7).click()  # lists the latents of this token
    ui.page.locator('#tokens [data-token="7"][aria-pressed="true"]').wait_for()
    listed = ui.page.locator("#firing [data-latent]")
    assert listed.count() == len(np.unique(active.latent[active.position == 7]))
    assert set(listed.locator(".where").all_inner_texts()) == {"apple"}


@pytest.mark.slow
def test_search_finds_latents_by_words_number_and_firing(open_page):
    ui = open_page(TEXT)

    ui.page.get_by_role("tab", name="Search").click()
    ui.search("zebra")
    first = ui.page.locator("#results [data-latent]").first
    first.wait_for()
    assert first.get_attribute("data-latent") == "7"  # by its words
    assert "words: zebra, stripes" in first.inner_text()
    active = {row["latent"] for row in ui.backend.latents_for("zebra", 20)}
    listed = ui.page.locator("#results [data-latent]").all()
    assert {int(latent.get_attribute("data-latent")) for latent in listed} == {7, *active}
    ui.page.locator('#results [data-latent="7"]').click()
    ui.page.locator("#name", has_text="Latent 7 zebra, stripes").wait_for()
    assert "1.000% of positions" in ui.page.locator("#card").inner_text()
    ui.page.locator('#card [data-latent="8"]').click()  # a neighbor
    ui.page.locator("#name", has_text="Latent 8 (end), tail").wait_for()
    ui.search("11")
    ui.page.locator('#results [data-latent="11"]', has_text="number").wait_for()
    ui.search("9999")
    ui.page.locator("#results .hint", has_text="latents 0 to 47").wait_for()
    ui.search("  ")
    ui.wait_for_message("the search is empty")


@pytest.mark.slow
def test_a_steered_latent_and_its_program_give_the_same_image(open_page):
    ui = open_page(TEXT)
    ui.draw_and_wait(APPLE)
    plain = ui.pixels("plain")
    np.testing.assert_array_equal(plain, ui.backend.plain_image(ui.request(APPLE)))
    assert "attach" not in ui.python()
    latent = strongest(ui)
    ui.open(latent)
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    assert (ui.pixels("steered") != plain).any()
    np.testing.assert_array_equal(run_program(ui.python()), ui.pixels("steered"))

    ui.strength(0, 0)  # 0 changes no bit
    ui.wait_for_status("bit for bit")
    np.testing.assert_array_equal(ui.pixels("steered"), plain)

    ui.page.locator("#mode-0").get_by_text("set").click()
    ui.wait_for_status("set to 20")  # its largest known value
    ui.strength(0, 35)
    ui.wait_for_status("set to 35")
    program = ui.python()
    assert f"{latent}: Clamp(35" in program
    np.testing.assert_array_equal(run_program(program), ui.pixels("steered"))
    ui.page.locator("#remove-0").click()
    ui.wait_for_status("Nothing is steered")
    assert not ui.page.locator("#row-0").is_visible()


@pytest.mark.slow
def test_a_concept_is_steered_by_its_rule_on_chosen_tokens(open_page):
    ui = open_page(TEXT)
    ui.draw_and_wait(APPLE)
    ui.fill("concept", "glossy 3d")
    ui.page.locator("#add").click()
    ui.wait_for_status("“glossy 3d” -1")
    contrast = ui.pixels("steered")
    old = ui.steered_url()
    ui.page.locator("#rule input").click()
    ui.page.get_by_role("option", name="gated").click()
    ui.wait_for_new_image(old)
    assert (ui.pixels("steered") != contrast).any()
    ui.page.get_by_role("button", name="Where and when").click()
    old = ui.steered_url()
    ui.fill("positions", "1-3")
    ui.page.locator("#positions input").press("Enter")
    ui.wait_for_new_image(old)
    program = ui.python()
    assert 'rule="gated"' in program
    assert "positions[[1, 2, 3]] = True" in program
    np.testing.assert_array_equal(run_program(program), ui.pixels("steered"))
    ui.fill("concept", "glossy 3d")
    ui.page.locator("#add").click()
    ui.wait_for_message("is already steered")


@pytest.mark.slow
def test_compare_shows_an_image_per_strength(open_page):
    ui = open_page(TEXT)
    ui.draw_and_wait(APPLE)
    latent = strongest(ui)
    ui.open(latent)
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    ui.page.get_by_role("button", name="Compare strengths").click()
    ui.fill("strengths", "-2, 0,two")
    ui.page.locator("#compare-go").click()
    ui.wait_for_message("strengths has 'two'")
    ui.fill("strengths", "-2, 0,2")
    ui.page.locator("#compare-go").click()
    ui.page.locator("#strip button").nth(2).wait_for()
    for i, strength in enumerate((-2.0, 0.0, 2.0)):
        steering = SteeringRequest(((latent, strength),), "contrast")
        url = ui.page.locator("#strip img").nth(i).get_attribute("src")
        np.testing.assert_array_equal(decode(url), ui.backend.steered_image(ui.request(APPLE), steering))
    ui.page.locator("#strip button").nth(2).click()  # use its strength
    ui.wait_for_status(f"latent {latent} +2")
    assert ui.page.locator("#strength-0 input[type=number]").input_value() == "2"


@pytest.mark.slow
def test_errors_are_one_line_and_the_page_keeps_working(open_page, monkeypatch, caplog):
    ui = open_page(TEXT)
    ui.page.on("dialog", lambda dialog: pytest.fail("a script was run"))
    for prompt, message in (
        ("  ", "the prompt is empty"),
        ("apple " * 40, "42 tokens"),
        ("x" * 20_000, "20,000 characters"),
    ):
        ui.draw(prompt)
        ui.wait_for_message(message)
        assert "\n" not in ui.message()
    for markup in ("<img src=x onerror=alert(1)>", "${alert(2)} {{x}}"):  # shown as text
        ui.draw_and_wait(markup)
    assert ui.page.locator("#tokens img").count() == 0

    def broken(*_):
        raise RuntimeError("wrong shape\nmore of it")

    with monkeypatch.context() as patch:
        patch.setattr(ui.backend, "_sample", broken)
        ui.draw("flat emoji of owl")
        ui.wait_for_message("the pipeline failed: RuntimeError: wrong shape more of it")
        assert "Traceback" in caplog.text  # a programming error
        caplog.clear()
        patch.setattr(ui.backend, "_sample", lambda *_: torch.empty(2**46))  # 256 TiB
        ui.draw("flat emoji of fox")
        ui.wait_for_message("restart the explorer with smaller config.steer.height and width")
        assert ui.message().startswith("out of memory: ")
        assert "Traceback" not in caplog.text
        assert f"error: {ui.message()}" in caplog.text
    assert "Traceback" not in ui.page.content()
    ui.draw_and_wait("flat emoji of owl")
    assert ui.message() == ""
    ui.page.get_by_role("button", name="Sampling").click()
    ui.fill("steps", "0")
    ui.page.locator("#draw").click()
    ui.wait_for_message("steps is 0; it must be a whole number from 1 to 1000")


@pytest.mark.slow
def test_the_address_opens_a_latent(open_page):
    ui = open_page(TEXT, "?latent=7")
    ui.page.locator("#name", has_text="Latent 7").wait_for()
    assert "Latent 7" in ui.page.locator("#name").inner_text()
    for query, message in (("48", "this SAE has latents 0-47"), ("seven", "must be the number")):
        ui.page.goto(f"{ui.explorer.url}?latent={query}")
        ui.wait_for_message(message)
        assert message in ui.message()


@pytest.mark.slow
def test_a_moving_slider_draws_only_the_last_image_and_stop_ends_one(open_page, monkeypatch):
    ui = open_page(TEXT)
    ui.draw_and_wait(APPLE)
    ui.open(strongest(ui))
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    proceed, started, sample, steered = threading.Event(), threading.Event(), ui.backend._sample, []

    def gated(*arguments):
        steered.append(arguments)
        started.set()
        proceed.wait(30)
        return sample(*arguments)

    monkeypatch.setattr(ui.backend, "_sample", gated)
    move = """values => {
        const slider = document.querySelector('#strength-0 input[type=range]');
        for (const value of values) {
            slider.value = value;
            slider.dispatchEvent(new Event('input', {bubbles: true}));
        }
    }"""
    ui.page.evaluate(move, [-1.5])
    ui.wait_for_event(started)
    ui.page.evaluate(move, [-2 - i / 20 for i in range(30)])
    ui.page.wait_for_timeout(500)  # time for the events to be sent
    proceed.set()
    ui.wait_for_status("-3.45")
    assert len(steered) == 2  # the image in progress, and the last one

    proceed, started = threading.Event(), threading.Event()

    def slow(request, on_step):
        def step(done, of):
            started.set()
            proceed.wait(30)
            on_step(done, of)

        return sample(request, step)

    monkeypatch.setattr(ui.backend, "_sample", slow)
    ui.draw("flat emoji of fox")
    ui.wait_for_event(started)
    with ui.page.expect_response(lambda response: "gradio_api" in response.url):
        ui.page.locator("#stop").click()
    proceed.set()
    ui.wait_for_message("stopped")


@pytest.mark.slow
def test_two_users_get_their_own_images(open_page):
    first, second = open_page(TEXT), open_page(TEXT)
    first.draw("flat emoji of pear")
    second.draw("flat emoji of bus")
    for ui, prompt in ((second, "flat emoji of bus"), (first, "flat emoji of pear")):
        ui.page.locator(f'#plain img[alt="Plain: {prompt}"]').wait_for()
        np.testing.assert_array_equal(ui.pixels("plain"), ui.backend.plain_image(ui.request(prompt)))


@pytest.mark.slow
def test_a_denoiser_is_steered_inside_a_painted_mask(open_page):
    ui = open_page(DENOISER)
    ui.draw_and_wait(APPLE)
    active = ui.backend.find_active(ui.request(APPLE))
    assert len(active.timesteps) == 3
    latent = strongest(ui)
    ui.page.locator(f'#firing [data-latent="{latent}"]').click()
    ui.page.locator("#maps figure").first.wait_for()
    assert ui.page.locator("#maps figure").count() == 4  # all steps, then each step
    peak = active.map(latent).max()
    for i, cells in enumerate(active.map(latent)):
        heat = decode(ui.page.locator("#maps img").nth(i + 1).get_attribute("src"))[..., 3]
        np.testing.assert_array_equal(heat.ravel(), np.round(225 * cells / peak))
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    everywhere = ui.pixels("steered")

    canvas = ui.page.locator("#painted canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["width"] == box["height"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    old = ui.steered_url()
    ui.page.mouse.move(x - 60, y - 60)
    ui.page.mouse.down()
    ui.page.mouse.move(x - 20, y - 60, steps=4)
    ui.page.mouse.up()
    ui.wait_for_new_image(old)
    assert (ui.pixels("steered") != everywhere).any()
    ui.page.get_by_role("button", name="Where and when").click()
    for name, value in (("first", "900"), ("end", "0.5")):
        old = ui.steered_url()
        ui.fill(name, value)
        ui.page.locator(f"#{name} input").press("Enter")
        ui.wait_for_new_image(old)
    program = ui.python()
    assert "mask=torch.from_numpy(mask)" in program
    assert "steps=(900.0, 0.0)" in program
    assert "ramp=(1.0, 0.5)" in program
    np.testing.assert_array_equal(run_program(program), ui.pixels("steered"))
    for name, value in (("first", "1000"), ("end", "1")):
        old = ui.steered_url()
        ui.fill(name, value)
        ui.page.locator(f"#{name} input").press("Enter")
        ui.wait_for_new_image(old)
    old = ui.steered_url()
    ui.page.locator("#painted").get_by_role("button", name="Clear").click()
    ui.wait_for_new_image(old)
    np.testing.assert_array_equal(ui.pixels("steered"), everywhere)


@pytest.mark.slow
def test_flux_is_steered_with_and_without_its_pooled_vector(open_page):
    ui = open_page(FLUX)
    ui.draw_and_wait(APPLE)
    plain = ui.pixels("plain")
    ui.page.locator("#firing [data-latent]").first.click()
    ui.page.locator("#tokens .heat").first.wait_for()
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    assert (ui.pixels("steered") != plain).any()
    np.testing.assert_array_equal(run_program(ui.python()), ui.pixels("steered"))
    assert "pooled" not in ui.python()  # a latent has no pooled vector
    ui.page.locator("#remove-0").click()
    ui.wait_for_status("Nothing is steered")
    ui.fill("concept", "glossy 3d")
    ui.page.locator("#add").click()
    ui.wait_for_status("of pixels differ")
    program = ui.python()
    assert "pooled=True" in program
    np.testing.assert_array_equal(run_program(program), ui.pixels("steered"))


@pytest.mark.slow
def test_the_page_fits_a_phone(open_page):
    ui = open_page(TEXT, size=PHONE, has_touch=True)
    ui.draw_and_wait(APPLE)
    ui.page.locator("#firing [data-latent]").first.tap()
    ui.page.locator("#take").tap()
    ui.wait_for_status("of pixels differ")
    assert ui.visited.overflow() == 0
    for name in ("draw", "take", "add", "prompt"):
        box = ui.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
        assert box["height"] >= 36  # large enough for a finger


@pytest.mark.slow
def test_the_page_works_with_the_keyboard_alone(open_page):
    ui = open_page(TEXT)
    ui.page.locator("#prompt textarea").focus()
    ui.page.keyboard.press("Control+A")
    ui.page.keyboard.type(TIGER)
    ui.page.keyboard.press("Enter")
    ui.page.locator(f'#plain img[alt="Plain: {TIGER}"]').wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(80):
            ui.page.keyboard.press("Tab")
            if ui.page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#firing [data-latent]")
    ui.page.keyboard.press("Enter")
    ui.page.locator("#take").wait_for()
    tab_to("#take")
    ui.page.keyboard.press("Enter")
    first = ui.wait_for_status("-1: ")
    ui.page.locator("#prompt textarea").focus()
    tab_to("#strength-0 input[type=range]")
    ui.page.keyboard.press("ArrowLeft")
    assert ui.wait_for_status("-1.05: ") != first
