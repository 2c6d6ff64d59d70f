"""The page in a real browser: what fires, search, steering, comparing, and what goes wrong."""

import re
import threading

import numpy as np
import pytest

from revelio_jax.explore.requests import SteeringRequest
from tests.helpers.browser import PHONE

TEXT, DENOISER, FLUX = "clip.layer.2", "unet.up_blocks.1", "t5.block.2"
APPLE, TIGER = "glossy 3d emoji of red apple", "flat emoji of tiger"


def made_by(program: str) -> np.ndarray:
    """The picture that a program of the page makes."""
    names: dict = {}
    exec(re.sub(r"^image\.save.*$", "", program, flags=re.M), names)
    return np.asarray(names["image"])


def strongest(used, prompt: str = APPLE) -> int:
    return used.live.fires(used.sampling(prompt)).strongest(1)[0]["latent"]


def test_what_fires_where(use):
    used = use(TEXT)
    used.drawn(APPLE)
    fired = used.live.fires(used.sampling(APPLE))
    rows = fired.strongest(40)
    shown = used.page.locator("#firing [data-latent]")
    assert [int(shown.nth(i).get_attribute("data-latent")) for i in range(5)] == [row["latent"] for row in rows[:5]]
    shown.first.click()
    used.page.locator("#tokens .heat").first.wait_for()
    values = fired.map(rows[0]["latent"])[0]
    tokens = used.page.locator("#tokens [data-token]")
    texts = [text.split("\n")[0] for text in tokens.all_inner_texts()]
    assert texts == ["start", "glossy", "3", "d", "emoji", "of", "red", "apple", "end"]
    for i in range(len(texts)):
        assert ("heat" in tokens.nth(i).get_attribute("class").split()) == (values[i] > 0)
    tokens.nth(7).click()  # a token lists its own
    used.page.locator('#tokens [data-token="7"][aria-pressed="true"]').wait_for()
    listed = used.page.locator("#firing [data-latent]")
    assert listed.count() == len(np.unique(fired.latent[fired.position == 7]))
    assert set(listed.locator(".where").all_inner_texts()) == {"apple"}


def test_search_by_words_numbers_and_firing(use):
    used = use(TEXT)

    used.page.get_by_role("tab", name="Search").click()
    used.search("zebra")
    first = used.page.locator("#results [data-latent]").first
    first.wait_for()
    assert first.get_attribute("data-latent") == "7"  # its words are known
    assert "words: zebra, stripes" in first.inner_text()
    firing = {row["latent"] for row in used.live.latents_for("zebra", 20)}
    listed = used.page.locator("#results [data-latent]").all()
    assert {int(latent.get_attribute("data-latent")) for latent in listed} == {7, *firing}
    used.page.locator('#results [data-latent="7"]').click()
    used.page.locator("#name", has_text="Latent 7 zebra, stripes").wait_for()
    assert "1.000% of positions" in used.page.locator("#card").inner_text()
    used.page.locator('#card [data-latent="8"]').click()  # a neighbour
    used.page.locator("#name", has_text="Latent 8 (end), tail").wait_for()
    used.search("11")
    used.page.locator('#results [data-latent="11"]', has_text="by its number").wait_for()
    used.search("9999")
    used.page.locator("#results .hint", has_text="numbered from 0 to 47").wait_for()
    used.search("  ")
    used.until_said("the search is empty")


def test_a_latent_is_steered_and_the_program_makes_the_same_picture(use):
    used = use(TEXT)
    used.drawn(APPLE)
    plain = used.pixels("plain")
    np.testing.assert_array_equal(plain, used.live.plain(used.sampling(APPLE)))
    assert "attach" not in used.python()
    latent = strongest(used)
    used.open(latent)
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    assert (used.pixels("steered") != plain).any()
    np.testing.assert_array_equal(made_by(used.python()), used.pixels("steered"))

    used.strength(0, 0)  # 0 changes no bit
    used.until_status("bit for bit")
    np.testing.assert_array_equal(used.pixels("steered"), plain)

    used.page.locator("#mode-0").get_by_text("set").click()
    used.until_status("set to 20")  # its largest value, as far as is known
    used.strength(0, 35)
    used.until_status("set to 35")
    program = used.python()
    assert f"{latent}: Clamp(35" in program
    np.testing.assert_array_equal(made_by(program), used.pixels("steered"))
    used.page.locator("#remove-0").click()
    used.until_status("Nothing is steered")
    assert not used.page.locator("#row-0").is_visible()


def test_a_concept_is_steered_by_its_rule_on_some_tokens(use):
    used = use(TEXT)
    used.drawn(APPLE)
    used.fill("concept", "glossy 3d")
    used.page.locator("#add").click()
    used.until_status("“glossy 3d” -1")
    fixed = used.pixels("steered")
    before = used.steered()
    used.page.locator("#rule input").click()
    used.page.get_by_role("option", name="gated").click()
    used.until_other(before)
    assert (used.pixels("steered") != fixed).any()
    used.page.get_by_role("button", name="Where and when").click()
    before = used.steered()
    used.fill("positions", "1-3")
    used.page.locator("#positions input").press("Enter")
    used.until_other(before)
    program = used.python()
    assert 'rule="gated"' in program
    assert "positions[[1, 2, 3]] = True" in program
    np.testing.assert_array_equal(made_by(program), used.pixels("steered"))
    used.fill("concept", "glossy 3d")
    used.page.locator("#add").click()
    used.until_said("is steered already")


def test_pictures_over_strengths(use):
    used = use(TEXT)
    used.drawn(APPLE)
    latent = strongest(used)
    used.open(latent)
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    used.page.get_by_role("button", name="Compare over strengths").click()
    used.fill("strengths", "-2, 0,two")
    used.page.locator("#compare-go").click()
    used.until_said("strengths has 'two'")
    used.fill("strengths", "-2, 0,2")
    used.page.locator("#compare-go").click()
    used.page.locator("#strip button").nth(2).wait_for()
    for i, strength in enumerate((-2.0, 0.0, 2.0)):
        steering = SteeringRequest(((latent, strength),), "contrast")
        address = used.page.locator("#strip img").nth(i).get_attribute("src")
        np.testing.assert_array_equal(used.decoded(address), used.live.steered(used.sampling(APPLE), steering))
    used.page.locator("#strip button").nth(2).click()  # takes its strength
    used.until_status(f"latent {latent} +2")
    assert used.page.locator("#strength-0 input[type=number]").input_value() == "2"


def test_what_goes_wrong_is_one_line_and_the_page_goes_on(use, monkeypatch):
    used = use(TEXT)
    used.page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    for prompt, said in (
        ("  ", "the prompt is empty"),
        ("apple " * 40, "42 tokens"),
        ("x" * 20_000, "20,000 letters"),
    ):
        used.draw(prompt)
        used.until_said(said)
        assert "\n" not in used.said()
    for markup in ("<img src=x onerror=alert(1)>", "${alert(2)} {{x}}"):  # texts, whatever they look like
        used.drawn(markup)
    assert used.page.locator("#tokens img").count() == 0

    def broken(*given):
        raise RuntimeError("out of memory\nmore of it")

    with monkeypatch.context() as patch:
        patch.setattr(used.live, "_sample", broken)
        used.draw("flat emoji of owl")
        used.until_said("the pipeline failed: RuntimeError: out of memory more of it")
    assert "Traceback" not in used.page.content()
    used.drawn("flat emoji of owl")
    assert used.said() == ""
    used.page.get_by_role("button", name="Sampling").click()
    used.fill("steps", "0")
    used.page.locator("#draw").click()
    used.until_said("steps is 0; it must be a whole number from 1 to 1000")


def test_the_address_opens_a_latent(use):
    used = use(TEXT, "?latent=7")
    used.page.locator("#name", has_text="Latent 7").wait_for()
    for query, said in (("48", "which has 0-47"), ("seven", "must be the number")):
        used.page.goto(f"{used.explorer.url}?latent={query}")
        used.until_said(said)


def test_a_slider_that_is_moved_on_piles_up_no_work_and_a_picture_is_stopped(use, monkeypatch):
    used = use(TEXT)
    used.drawn(APPLE)
    used.open(strongest(used))
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    go, started, sample, steered = threading.Event(), threading.Event(), used.live._sample, []

    def gated(*given):
        steered.append(given)
        started.set()
        go.wait(30)
        return sample(*given)

    monkeypatch.setattr(used.live, "_sample", gated)
    move = """values => {
        const slider = document.querySelector('#strength-0 input[type=range]');
        for (const value of values) {
            slider.value = value;
            slider.dispatchEvent(new Event('input', {bubbles: true}));
        }
    }"""
    used.page.evaluate(move, [-1.5])
    used.until_set(started)
    used.page.evaluate(move, [-2 - i / 20 for i in range(30)])
    used.page.wait_for_timeout(500)  # those are sent, or not
    go.set()
    used.until_status("-3.45")
    assert len(steered) == 2  # the one that was under way, and the last

    go, started = threading.Event(), threading.Event()

    def slow(sampling, on_step):
        def step(done, of):
            started.set()
            go.wait(30)
            on_step(done, of)

        return sample(sampling, step)

    monkeypatch.setattr(used.live, "_sample", slow)
    used.draw("flat emoji of fox")
    used.until_set(started)
    with used.page.expect_response(lambda response: "gradio_api" in response.url):
        used.page.locator("#stop").click()
    go.set()
    used.until_said("stopped")


def test_two_who_draw_at_once_get_their_own(use):
    first, second = use(TEXT), use(TEXT)
    first.draw("flat emoji of pear")
    second.draw("flat emoji of bus")
    for used, prompt in ((second, "flat emoji of bus"), (first, "flat emoji of pear")):
        used.page.locator(f'#plain img[alt="Plain: {prompt}"]').wait_for()
        np.testing.assert_array_equal(used.pixels("plain"), used.live.plain(used.sampling(prompt)))


def test_a_denoiser_with_a_mask_that_is_painted(use):
    used = use(DENOISER)
    used.drawn(APPLE)
    fired = used.live.fires(used.sampling(APPLE))
    assert len(fired.timesteps) == 3
    latent = strongest(used)
    used.page.locator(f'#firing [data-latent="{latent}"]').click()
    used.page.locator("#maps figure").first.wait_for()
    assert used.page.locator("#maps figure").count() == 4  # over all steps, and of each
    peak = fired.map(latent).max()
    for i, cells in enumerate(fired.map(latent)):
        heat = used.decoded(used.page.locator("#maps img").nth(i + 1).get_attribute("src"))[..., 3]
        np.testing.assert_array_equal(heat.ravel(), np.round(225 * cells / peak))
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    everywhere = used.pixels("steered")

    canvas = used.page.locator("#painted canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["width"] == box["height"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = used.steered()
    used.page.mouse.move(x - 60, y - 60)
    used.page.mouse.down()
    used.page.mouse.move(x - 20, y - 60, steps=4)
    used.page.mouse.up()
    used.until_other(before)
    assert (used.pixels("steered") != everywhere).any()
    used.page.get_by_role("button", name="Where and when").click()
    for name, value in (("first", "900"), ("end", "0.5")):
        before = used.steered()
        used.fill(name, value)
        used.page.locator(f"#{name} input").press("Enter")
        used.until_other(before)
    program = used.python()
    assert "mask=torch.from_numpy(mask)" in program
    assert "steps=(900.0, 0.0)" in program
    assert "ramp=(1.0, 0.5)" in program
    np.testing.assert_array_equal(made_by(program), used.pixels("steered"))
    for name, value in (("first", "1000"), ("end", "1")):
        before = used.steered()
        used.fill(name, value)
        used.page.locator(f"#{name} input").press("Enter")
        used.until_other(before)
    before = used.steered()
    used.page.locator("#painted").get_by_role("button", name="Clear").click()
    used.until_other(before)
    np.testing.assert_array_equal(used.pixels("steered"), everywhere)


def test_flux(use):
    used = use(FLUX)
    used.drawn(APPLE)
    plain = used.pixels("plain")
    used.page.locator("#firing [data-latent]").first.click()
    used.page.locator("#tokens .heat").first.wait_for()
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    assert (used.pixels("steered") != plain).any()
    np.testing.assert_array_equal(made_by(used.python()), used.pixels("steered"))
    assert "pooled" not in used.python()  # a latent has none
    used.page.locator("#remove-0").click()
    used.until_status("Nothing is steered")
    used.fill("concept", "glossy 3d")
    used.page.locator("#add").click()
    used.until_status("of pixels differ")
    program = used.python()
    assert "pooled=True" in program
    np.testing.assert_array_equal(made_by(program), used.pixels("steered"))


def test_on_a_phone(use):
    used = use(TEXT, size=PHONE, has_touch=True)
    used.drawn(APPLE)
    used.page.locator("#firing [data-latent]").first.tap()
    used.page.locator("#take").tap()
    used.until_status("of pixels differ")
    assert used.visited.overflow() == 0
    for name in ("draw", "take", "add", "prompt"):
        box = used.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
        assert box["height"] >= 36  # a finger's


def test_by_the_keyboard_alone(use):
    used = use(TEXT)
    used.page.locator("#prompt textarea").focus()
    used.page.keyboard.press("Control+A")
    used.page.keyboard.type(TIGER)
    used.page.keyboard.press("Enter")
    used.page.locator(f'#plain img[alt="Plain: {TIGER}"]').wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(80):
            used.page.keyboard.press("Tab")
            if used.page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"Tab does not come to {selector}")

    tab_to("#firing [data-latent]")
    used.page.keyboard.press("Enter")
    used.page.locator("#take").wait_for()
    tab_to("#take")
    used.page.keyboard.press("Enter")
    before = used.until_status("-1: ")
    used.page.locator("#prompt textarea").focus()
    tab_to("#strength-0 input[type=range]")
    used.page.keyboard.press("ArrowLeft")
    assert used.until_status("-1.05: ") != before
