"""The page in a real browser: nothing spills over, nothing is hidden, everything can be read.

The page itself forbids scripts, so the probe goes into a copy without that policy; the page as it ships is
opened too, and must not leave a word on the console.
"""

import html as escapes
import json
import os
import re
import shutil
import subprocess

import pytest

from soloist.toolchain.report.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PROBE = """
addEventListener('load', () => {
  const rgb = (text) => {
    const n = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const c = text.startsWith('color(') ? n.slice(0, 3).map((v) => v * 255) : n.slice(0, 3);
    return [...c, n[3] ?? 1];
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const c = getComputedStyle(el).backgroundColor;
      if (c !== 'transparent' && rgb(c)[3] === 1) return rgb(c);
    }
    return [255, 255, 255, 1];
  };
  const pale = [], spilled = [], sections = {};
  for (const el of document.body.querySelectorAll('*')) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (own && !['TITLE', 'DESC', 'STYLE', 'SCRIPT', 'title', 'desc'].includes(el.tagName)) {
      const style = getComputedStyle(el), svg = el instanceof SVGElement;
      const a = light(rgb(svg ? style.fill : style.color).slice(0, 3)), b = light(behind(el).slice(0, 3));
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const name = `${el.tagName}.${el.getAttribute('class')} ${el.textContent.slice(0, 20)}`;
      if (!(ratio >= 4.5)) pale.push(`${name} ${ratio.toFixed(2)}`);
    }
    const box = el.getBoundingClientRect();
    const wide = box.width && box.right > innerWidth + 1 && !el.closest('.scroll');
    if (wide) spilled.push(`${el.tagName}.${el.getAttribute('class')}`);
  }
  for (const el of document.querySelectorAll('section')) {
    const box = el.getBoundingClientRect();
    sections[el.id] = [box.height, getComputedStyle(el).visibility, el.innerText.length];
  }
  const texts = [...document.querySelectorAll('#picture svg')].map((svg) => {
    const frame = svg.getBoundingClientRect();
    const outside = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()])
      .filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1)
      .map(([text]) => text);
    const heights = [...svg.querySelectorAll('text')].map((t) => t.getBoundingClientRect().height);
    return { outside, smallest: Math.min(...heights) };
  });
  const result = { inner: innerWidth, scroll: document.scrollingElement.scrollWidth, pale, spilled, sections, texts,
    paper: getComputedStyle(document.body).backgroundColor };
  parent.document.body.dataset.result = JSON.stringify(result);
});
"""


def browse(tmp_path, page, *flags):
    """Run Chromium once on a page; its output and what it logged."""
    file = tmp_path / "page.html"
    file.write_text(page)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1280,1200",
        *flags,
        file.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module", params=[(390, 1), (390, 0), (1280, 1), (1280, 0)], ids=str)
def probed(request, report, tmp_path_factory):
    """What the browser says about the page, at one width in one color scheme (0 dark, 1 light)."""
    width, scheme = request.param
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(report))
    page = page.replace("</body>", f"<script>{PROBE}</script></body>")
    # A window is never narrower than 500 pixels, a frame may be.
    frame = f'<iframe style="border:0;width:{width}px;height:1200px" srcdoc="{escapes.escape(page)}"></iframe>'
    outer = f'<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">{frame}'
    folder = tmp_path_factory.mktemp("probe")
    out, _ = browse(folder, outer, "--dump-dom", f"--blink-settings=preferredColorScheme={scheme}")
    found = re.search(r'data-result="([^"]*)"', out)
    assert found, out[-2000:]
    return width, scheme, json.loads(escapes.unescape(found.group(1)))


def test_page_is_as_wide_as_the_window(probed):
    width, _, seen = probed
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["spilled"] == []


def test_every_section_can_be_seen(probed, report):
    sections = probed[2]["sections"]
    assert len(sections) == 11
    for key, (height, visibility, letters) in sections.items():
        assert height > 60, key
        assert visibility == "visible", key
        assert letters > 30, key


def test_every_text_has_enough_contrast(probed):
    assert probed[2]["pale"] == []


def test_chart_texts_stay_inside_and_readable(probed):
    for chart in probed[2]["texts"]:
        assert chart["outside"] == []
        assert chart["smallest"] >= 9


def test_scheme_follows_the_reader(probed):
    _, scheme, seen = probed
    brightness = sum(int(part) for part in re.findall(r"\d+", seen["paper"])[:3])
    assert brightness > 600 if scheme else brightness < 120


def test_page_as_shipped_is_silent_and_paints(report, tmp_path):
    _, log = browse(tmp_path, render(report), f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in log
    picture = (tmp_path / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_policy_stops_a_script_that_slipped_in(report, tmp_path):
    page = render(report).replace("</body>", "<script>document.title = 'run'</script></body>")
    out, log = browse(tmp_path, page, "--dump-dom")
    assert "<title>run</title>" not in out
    assert "Content Security Policy" in log


def test_page_prints(report, tmp_path):
    browse(tmp_path, render(report), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
