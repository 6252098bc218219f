import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastdiss_fairseq import FastDiSS
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.tools import trace

BUNDLE = Path(__file__).parents[1] / "models" / "multi30k_de_en"
HOSTILE = '<script>document.title = "hacked"</script> & "quoted" <b>bold</b>'
SENTENCES = ["Ein Mann schläft auf einer Bank.", HOSTILE]
OPTIONS = dict(steps=4, choice="mbr", options={"length_beam": 2, "noise_beam": 2})
VOID = {"meta"}


@pytest.fixture(scope="module")
def model():
    return FastDiSS.from_pretrained(BUNDLE)


@pytest.fixture(scope="module")
def document(model):
    return trace.page(model, SENTENCES, **OPTIONS)


class Reader(HTMLParser):
    """Collects elements and text; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_file_is_whole_and_needs_nothing_else(document):
    reader = Reader(document)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "img", "iframe", "b"}
    assert not [v for _, attributes in reader.elements for n, v in attributes.items() if n in ("src", "href")]
    assert "http" not in document and "url(" not in document and "@import" not in document
    assert all(sentence in reader.texts for sentence in SENTENCES)


def test_every_step_of_every_candidate_is_there(model, document):
    reader = Reader(document)
    assert sum(text.startswith("step ") for text in reader.texts) == 2 * 4 * 4
    for candidates in model.decode(SENTENCES, 4, length_beam=2, noise_beam=2, decoding_choice="mbr"):
        for candidate in candidates:
            assert candidate.text in reader.texts and f"{candidate.score:.3f}" in reader.texts
    assert reader.texts.count("1 (chosen)") == 2


def test_changed_and_reconsidered_tokens_are_marked():
    class Numbers(list):
        def exp(self):
            return self

        def tolist(self):
            return list(self)

    step = lambda tokens, p: {"tokens": tokens, "positional_scores": Numbers(p)}
    history = [step(["a", "b", "c"], [0.05, 0.5, 1.0]), step(["a", "d", "c"], [0.2, 0.5, 1.0])]
    table = trace.steps_table(list, {"history": history}, "x")
    classes = [attributes["class"] for tag, attributes in Reader(table).elements if tag == "span"]
    assert classes == ["t c0", "t c3", "t c5", "t c1 again", "t c3 new", "t c5"]
    assert "d: confidence 50%, changed" in table and "c: confidence 100%, kept" in table


def test_command(tmp_path, capsys, monkeypatch):
    out = tmp_path / "one.html"
    trace.main([str(BUNDLE), "Ein Hund.", "--steps", "2", "--output", str(out), "--option", "decoding-solver=ddim"])
    assert "decoding_solver ddim" in out.read_text(encoding="utf-8") and "1 sentence" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", [])
    for arguments, message in (
        ([], "no sentences"),
        (["x", "--option", "x"], "NAME=VALUE"),
        (["x", "--option", "beams=2"], "unknown generation option: beams"),
        (["x", "--steps", "0"], "at least 1"),
        (["x", "--choice", "ar"], "needs an autoregressive checkpoint"),
        (["x", "--option", "steps=3"], "--option steps is not taken: use --steps"),
        (["x", "--option", "decoding-choice=mbr"], "use --choice"),
        (["x", "--option", "choice=mbr"], "use --choice"),
        (["x", "--option", "sentences=y"], "give them as arguments"),
        (["x", "--option", "model=y"], "unknown generation option: model"),
    ):
        with pytest.raises(FastDiSSError, match=message):
            trace.main([str(BUNDLE), "--output", str(tmp_path / "none.html"), *arguments])
    assert not (tmp_path / "none.html").exists()


@pytest.fixture
def browser():
    """A real browser: Debian's or another Chromium, steered by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as steered:
        yield steered.chromium.launch(executable_path=program, args=["--no-sandbox"])


#: Relative luminance contrast (WCAG 2) of each token on its background, and whether the page is wider than its window.
MEASURE = """() => {
  const numbers = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = numbers(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const tokens = [...document.querySelectorAll("td .t")].map(e => getComputedStyle(e));
  return { contrast: Math.min(...tokens.map(s => contrast(s.color, s.backgroundColor))), tokens: tokens.length,
           wide: document.documentElement.scrollWidth > innerWidth, title: document.title,
           paper: light(getComputedStyle(document.body).backgroundColor) };
}"""


@pytest.mark.slow
def test_in_a_real_browser(document, browser, tmp_path):
    file = tmp_path / "trace.html"
    file.write_text(document, encoding="utf-8")
    papers = []
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 360)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(file.as_uri())
        found = page.evaluate(MEASURE)
        assert requests == [file.as_uri()] and errors == []
        assert found["title"].startswith("FastDiSS") and found["tokens"] > 50
        assert found["contrast"] >= 4.5, (scheme, found["contrast"])
        assert not found["wide"], (scheme, width)
        assert page.get_by_text("Steps of the other candidates").count() == 2
        page.get_by_text("Steps of the other candidates").first.click()
        assert page.locator("details[open] .t").first.is_visible()
        papers.append(found["paper"])
    assert papers[0] > 0.8 and papers[1] < 0.1
