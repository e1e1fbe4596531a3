"""The app in a browser, on a tiny model: every tab shows its result, and what it refuses it refuses in words."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_hub import AttributeClassifier, LatentCodeModel, VPDDIMScheduler, load_codes
from diffae_hub.codes import encode_dataset

from ..conftest import make_tiny_pipeline

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

APP = Path(__file__).parents[2] / "examples" / "app"
PATIENCE = 30_000  # milliseconds, for a machine that is busy
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with a model of 16x16 pixels that has every component, and the codes of the example pictures."""
    folder = tmp_path_factory.mktemp("app")
    pipeline = make_tiny_pipeline()
    pipeline.latent_code_model = LatentCodeModel(pipeline.encoder.config.latent_dim, hidden_dim=16, num_layers=2)
    pipeline.latent_scheduler = VPDDIMScheduler()
    encode_dataset(pipeline, APP / "pictures", folder / "codes")
    codes = load_codes(folder / "codes")["latent_code"]
    pipeline.attribute_classifier = AttributeClassifier.principal_directions(codes, 2)
    pipeline.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", APP / "app.py", "--port", str(port)]
    command += ["--model", folder / "model", "--codes", folder / "codes"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "GRADIO_TEMP_DIR": str(folder / "files")}
    )
    try:
        for line in process.stdout:
            if "http://" in line:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: sync_api.Browser, address: str) -> sync_api.Page:
    """A visitor's page, for what leaves it as it was."""
    return visit(browser, address)


@pytest.fixture
def another_page(browser: sync_api.Browser, address: str) -> sync_api.Page:
    return visit(browser, address)


def visit(browser: sync_api.Browser, address: str) -> sync_api.Page:
    """The page with 2 steps set."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("tab", name="Reconstruct").wait_for()
    page.get_by_role("button", name="Settings").first.click()
    set_number(page, "Steps", 2)
    return page


def set_number(page: sync_api.Page, name: str, value: float) -> None:
    field = page.get_by_label(f"number input for {name}", exact=True)
    field.fill(str(value))
    field.blur()


def press(page: sync_api.Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def open_tab(page: sync_api.Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def upload(page: sync_api.Page, path: Path) -> None:
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(path)


def shown(page: sync_api.Page, name: str, act: Callable[[], None]) -> np.ndarray:
    """The picture that is shown under this name after an act, once it is another than before."""
    image = page.get_by_role("img", name=name, exact=True)
    before = image.get_attribute("src") if image.count() else ""
    act()
    sync_api.expect(image).not_to_have_attribute("src", before, timeout=PATIENCE)
    content = page.request.get(image.get_attribute("src")).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def choose_model(page: sync_api.Page, name: str) -> None:
    field = page.get_by_role("combobox", name="Model")
    field.fill(name)
    field.press("Enter")


def refusal(page: sync_api.Page) -> str:
    return page.get_by_test_id("toast-text").inner_text()


def test_reconstruct_an_uploaded_picture_with_few_and_more_steps(page: sync_api.Page, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "mine.png")
    upload(page, tmp_path / "mine.png")
    original = shown(page, "Original", lambda: press(page, "Reconstruct"))
    assert (original == (200, 100, 50)).all()
    for name in ("Code alone", "Round trip", "Difference × 5"):
        sync_api.expect(page.get_by_role("img", name=name, exact=True)).to_be_visible(timeout=PATIENCE)
    set_number(page, "Steps", 4)
    shown(page, "Code alone", lambda: press(page, "Reconstruct"))  # another picture
    set_number(page, "Steps", 2)
    assert "PSNR" in page.get_by_role("tabpanel").filter(visible=True).inner_text()


def test_text_named_png_is_refused(another_page: sync_api.Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    upload(another_page, tmp_path / "notes.png")
    words = refusal(another_page)
    assert "image" in words
    assert "notes.png" in words
    assert "Traceback" not in words
    assert "/" not in words  # where it lies on the server


def test_model_that_is_none_is_refused(another_page: sync_api.Page) -> None:
    choose_model(another_page, "/etc")
    assert "Model" in refusal(another_page)


def test_slider_edits(page: sync_api.Page) -> None:
    open_tab(page, "Edit")
    strip = "From the picture to the edited one"
    plain = shown(page, strip, lambda: press(page, "Edit"))

    def move() -> None:
        slider = page.get_by_label("range slider for component 0", exact=True)
        for _ in range(4):
            slider.press("ArrowRight")

    edited = shown(page, strip, move)
    width = 256  # the first frame stays, the last moves
    assert (plain[:, :width] == edited[:, :width]).all()
    assert (plain[:, -width:] != edited[:, -width:]).any()


def test_interpolate(page: sync_api.Page) -> None:
    open_tab(page, "Interpolate")
    set_number(page, "Frames", 4)
    shown(page, "All frames", lambda: press(page, "Interpolate"))
    source = page.get_by_role("img", name="The frames as an animation").get_attribute("src")
    animation = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (animation.format, animation.n_frames) == ("GIF", 6)  # there and back


def test_variations_and_their_spread(page: sync_api.Page) -> None:
    open_tab(page, "Variations")
    assert shown(page, "Variations", lambda: press(page, "Vary")).std() > 0
    sync_api.expect(page.get_by_role("img", name="Spread × 5")).to_be_visible(timeout=PATIENCE)


def test_sample(page: sync_api.Page) -> None:
    open_tab(page, "Sample")
    assert shown(page, "New pictures", lambda: press(page, "Sample")).std() > 0


def test_nearest_neighbour_of_an_example_is_itself(page: sync_api.Page) -> None:
    pandas = page.locator("img[src*='panda.png']")
    before = pandas.count()
    page.locator(".gallery-item").nth(4).click()
    sync_api.expect(pandas).to_have_count(before + 1, timeout=PATIENCE)
    open_tab(page, "Neighbours")
    press(page, "Search")
    captions = page.locator(".caption-label")
    sync_api.expect(captions.first).to_be_visible(timeout=PATIENCE)
    distances = [float(text) for text in captions.all_inner_texts()]
    assert len(distances) == 8
    assert distances[0] < 1e-3
    assert distances == sorted(distances)


def test_model_without_components_says_so(another_page: sync_api.Page) -> None:
    choose_model(another_page, "cifar10-32-small")
    for tab, hint in (("Neighbours", "another model"), ("Edit", "fit-attributes"), ("Sample", "train-latent")):
        another_page.get_by_text(hint).wait_for(state="attached")
        open_tab(another_page, tab)
        another_page.get_by_text(hint).wait_for()


def test_phone_width_needs_no_sideways_scrolling(page: sync_api.Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
