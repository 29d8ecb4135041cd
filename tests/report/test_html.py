"""The report as a file: well-formed, self-contained, escaped, bounded; and what it shows."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.report import Finding, write_html
from keras_git.report.html import MANY_CLASSES, to_html
from keras_git.report.markup import Markup, tag
from tests.report import planted

VOID = {"meta", "img", "br", "col"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects tags and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), "an attribute twice"
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "

    def sections(self) -> list[str]:
        return [a["id"] for name, a in self.tags if name == "section"]


@pytest.fixture(scope="module")
def ten():
    return planted.large(10, num_models=3, transformations=5, num_examples=4)


def check_self_contained(source: str) -> Page:
    page = Page(source)
    assert "http" not in source.replace("http-equiv", "").replace("http_equiv", "")
    names = {name for name, _ in page.tags}
    assert not names & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignobject",
    }
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in source and "@import" not in source
    return page


def test_the_page_is_well_formed_and_self_contained(ten):
    page = check_self_contained(to_html(ten))
    assert page.sections() == [
        "summary", "size", "heat", "strength", "worst", "accuracy", "groups", "numbers", "settings",
    ]  # fmt: skip
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    anchors = {a["href"][1:] for name, a in page.tags if name == "a"}
    assert anchors == set(page.sections())
    svgs = [a for name, a in page.tags if name == "svg" and "viewbox" in a]
    titles = sum(name == "desc" for name, _ in page.tags)
    assert len(svgs) == titles and all(a["role"] == "img" for a in svgs)


def test_the_style_sheet_is_the_one_that_the_policy_allows(ten):
    import base64
    import hashlib

    source = to_html(ten)
    style = re.search("<style>(.*?)</style>", source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{digest}" in source
    assert "prefers-color-scheme:dark" in style and "@media print" in style
    assert style.count("{") == style.count("}")


def test_no_coordinate_is_missing(ten):
    source = to_html(ten)
    shapes = re.findall(r"<(?:path|line|circle|rect|text)[^>]*>", source)
    assert len(shapes) > 500
    assert not [shape for shape in shapes if "nan" in shape.lower() or "inf" in shape.lower()]
    for _, x, y in re.findall(r'c(x)="([-\d.]+)" cy="([-\d.]+)"', source):
        assert 0 <= float(x) <= 900 and 0 <= float(y) <= 400


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</title></style><b>'",
        "&lt;b&gt; & co",
        "日本 ひらがな",
        "a\u202eb\x00\udcff\n",
        "--><!--",
    ],
)
def test_names_are_never_markup(evil):
    result = planted.large(4, 2, transformations=2, num_examples=3)
    models = tuple(
        dataclasses.replace(
            m,
            name=f"{i}{evil}",
            measurements=tuple(
                dataclasses.replace(
                    x, condition=dataclasses.replace(x.condition, unit=evil, label=evil)
                )
                for x in m.measurements
            ),
        )
        for i, m in enumerate(result.models)
    )
    names = (evil, *result.class_names[1:])
    source = to_html(
        dataclasses.replace(
            result,
            models=models,
            class_names=names,
            data=evil,
            skipped={evil: evil},
            settings={evil: evil, "list": [evil]},
            versions={evil: evil},
        ),
        notes=[Finding(evil, (evil,))],
    )
    page = check_self_contained(source)
    assert {name for name, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "nav", "a",
        "section", "div", "ul", "li", "strong", "span", "bdi", "br", "img", "figure", "figcaption",
        "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "desc",
        "line", "path", "circle", "rect", "text",
    }  # fmt: skip
    if evil.isprintable():
        assert evil in page.text.replace("\u00a0", " ")


@pytest.mark.parametrize("classes, models", [(1000, 1), (1000, 3), (1, 1), (2, 2), (61, 1)])
def test_the_size_is_bounded(tmp_path, classes, models):
    result = planted.large(classes, models, num_examples=40, side=224 if classes > 100 else 16)
    path = write_html(result, tmp_path / "report.html")
    assert path.stat().st_size < 5_000_000
    page = check_self_contained(path.read_text("utf-8"))
    assert page.sections()[0] == "summary" and page.sections()[-1] == "settings"


def test_many_classes_become_groups_and_the_worst():
    source = to_html(planted.large(MANY_CLASSES + 40, transformations=3))
    assert "The 20 classes with the largest eKLD" in source
    assert source.count("(10 classes)") == 10
    few = to_html(planted.large(MANY_CLASSES, transformations=3))
    assert "classes with the largest eKLD</h3>" not in few


def test_numbers_that_do_not_fit_are_averaged_or_cut():
    medium = to_html(planted.large(200, transformations=13))
    assert "eKLD of every class, for each transformation and strength" in medium
    large = to_html(planted.large(2000, transformations=13))
    assert "eKLD of every class, for each transformation, mean over the strengths" in large
    larger = to_html(planted.large(6000, transformations=13))
    assert "eKLD of the 4,615 worst classes" in larger and len(larger) < 5_000_000


def test_classes_without_images_say_so():
    counts = planted.sizes(5)
    images = np.array([20, 20, 0, 20, 20])
    ekld = np.where(images > 0, 0.2, np.nan)
    model = planted.model("net", {"rotation": ekld}, counts, images)
    source = to_html(planted.result([model], counts, images))
    page = check_self_contained(source)
    assert page.text.count("no images") >= 3  # summary, heat map, numbers
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+", "", page.text.lower())


def test_one_class_one_model_one_condition():
    counts, images = np.array([7]), np.array([3])
    model = planted.model("net", {"horizontal_flip": np.array([0.1])}, counts, images)
    page = check_self_contained(to_html(planted.result([model], counts, images)))
    assert "One model, net" in page.text


def test_balanced_classes_and_classes_never_trained():
    for counts in (np.full(5, 50), np.array([100, 10, 1, 0, 0])):
        images = np.full(5, 30)
        model = planted.model("net", {"rotation": np.linspace(0.1, 1, 5)}, counts, images)
        source = to_html(planted.result([model], counts, images))
        check_self_contained(source)
        assert "nan" not in source.lower().split("</style>")[1].replace("dominant", "")


def test_models_measured_under_different_conditions():
    counts, images = planted.sizes(6), np.full(6, 30)
    first = planted.model("a", {"rotation": np.full(6, 0.3)}, counts, images)
    second = planted.model("b", {"brightness": np.full(6, 0.3)}, counts, images)
    third = planted.model("c", {}, counts, images)
    check_self_contained(to_html(planted.result([first, second, third], counts, images)))


def test_the_same_result_gives_the_same_bytes(tmp_path, ten):
    first = write_html(ten, tmp_path / "a.html").read_bytes()
    again = planted.large(10, num_models=3, transformations=5, num_examples=4)
    assert write_html(again, tmp_path / "b.html").read_bytes() == first


def test_the_file_is_replaced_as_a_whole(tmp_path, ten, monkeypatch):
    path = tmp_path / "new" / "report.html"
    assert write_html(ten, path) == path
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_html(ten, path, title="other")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_nothing_to_report():
    with pytest.raises(InputError, match="nothing to report"):
        to_html(planted.result([], np.array([1]), np.array([1])))


def test_examples_show_pictures_and_predictions(ten):
    page = Page(to_html(ten))
    images = [a for name, a in page.tags if name == "img"]
    assert len(images) == 3 * 4 * 2
    assert images[1]["alt"] == "the same image after rotation, up to 30 degrees"
    assert "97\u00a0%, right" in page.text and "55\u00a0%, wrong" in page.text
    grey = planted.large(10, transformations=1)
    model = dataclasses.replace(
        grey.models[0], examples=planted.examples(grey.class_counts, 2, side=20, channels=1)
    )
    check_self_contained(to_html(dataclasses.replace(grey, models=(model,))))


def test_both_parts_of_the_error_are_columns(ten):
    text = Page(to_html(ten)).text
    assert "sampling error" in text and "error between images" in text
    many = Page(to_html(planted.large(80, transformations=13))).text  # no room for a long table
    assert "sampling error" in many and "error between images" in many
    model = ten.models[0]
    without = [
        dataclasses.replace(m, ekld_sampling_error=np.full(10, np.nan)) for m in model.measurements
    ]
    model = dataclasses.replace(model, measurements=tuple(without))
    source = to_html(dataclasses.replace(ten, models=(model,)))
    assert "error between images</th>" in to_html(ten) and "error between images</th>" not in source


def test_groups_name_their_images_and_their_errors(ten):
    assert "training images per class" in Page(to_html(ten)).text
    audited = dataclasses.replace(ten, settings={"class_counts": "audited images"})
    text = Page(to_html(audited)).text
    assert "audited images per class" in text and "training images per class" not in text
    assert "\u00a0\u00b1\u00a00.012" in text


def test_title_and_notes_are_shown(ten):
    page = Page(to_html(ten, title="Methods <compared>", notes=[Finding("Seeds", ("Two.",))]))
    assert "Methods <compared>" in page.text and "Seeds" in page.text and "Two." in page.text


def test_tags_escape_all_but_markup():
    assert tag("p", "<b>", Markup("<i></i>"), None, ["&"], class_="a", title='"') == (
        '<p class="a" title="&quot;">&lt;b&gt;<i></i>&amp;</p>'
    )
    assert tag("line", x1=1.25, y1=2.0, stroke_width=3) == (
        '<line x1="1.2" y1="2" stroke-width="3"></line>'
    )


def test_pictures_are_files(tmp_path):
    result = planted.large(4, 2, transformations=2)
    result = dataclasses.replace(result, class_names=("$a$", "_b", "c", "<d>"))
    model = dataclasses.replace(result.models[0], name="$\\frac$ $")
    result = dataclasses.replace(result, models=(model, *result.models[1:]))
    made = result.plot(tmp_path / "pictures")
    assert [p.name for p in made] == ["ekld_against_class_size.png", "accuracy_per_class.png"]
    assert all(p.stat().st_size > 1000 for p in made)


@pytest.mark.slow
@pytest.mark.parametrize("classes, models", [(10, 3), (1000, 1)])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_nothing_overflows_and_nothing_is_refused(tmp_path, classes, models, dark):
    """In a frame as wide as a phone the page reports its width; the console stays empty."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs the browser chromium")
    result = planted.large(classes, models, num_examples=4)
    result = dataclasses.replace(
        result, class_names=("x" * 300, *result.class_names[1:]), data="y" * 300
    )
    source = to_html(result).replace("<details>", '<details open="">')
    # The page forbids scripts: the copy that measures itself goes without the policy.
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    measured = measured.replace(
        "</main>",
        "</main><script>addEventListener('load', () => parent.postMessage("
        "document.documentElement.scrollWidth + ' ' + innerWidth, '*'))</script>",
    )
    (tmp_path / "report.html").write_text(source, "utf-8")
    (tmp_path / "measured.html").write_text(measured, "utf-8")
    (tmp_path / "frame.html").write_text(
        "<!DOCTYPE html><title>waiting</title><script>addEventListener('message', e => "
        "document.body.append('widths ' + e.data))</script>"
        '<iframe src="measured.html" width="360" height="640" style="border:0"></iframe>',
        "utf-8",
    )

    def browse(name: str) -> tuple[str, str]:
        process = subprocess.run(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                "--virtual-time-budget=20000",
                "--dump-dom",
                (tmp_path / name).as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        complaints = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
        return process.stdout, "\n".join(complaints)

    dom, _ = browse("frame.html")
    content, frame = re.search(r"widths (\d+) (\d+)", dom).groups()
    assert int(content) <= int(frame) == 360
    _, complaints = browse("report.html")
    assert not complaints
