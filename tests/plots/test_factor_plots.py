"""Pictures of factors, invariance and line-up, and their section of the report."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_git.analysis import FactorTable, InvarianceTable, lines_up
from keras_git.analysis.cells import DifferenceTable
from keras_git.analysis.checks import CheckTable
from keras_git.errors import InputError
from keras_git.report import write_factors_html

_NAMES = ("cat & <dog>", "gr\u00f6\u00dfe", "third")


def _factors() -> FactorTable:
    generator = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(_NAMES):
        for place in range(6):
            gain = float(generator.normal())
            row = {"class_id": label, "class_name": name, "transform": f"turn{place // 2}"}
            row |= {"magnitude": float(place % 2), "gain": gain, "net_gain": gain, "share": 0.5}
            row |= {"net_lo": gain - 0.3, "net_hi": gain + 0.3, "q_value": 0.01 if place else 0.5}
            row |= {"gain_lo": gain - 0.3, "gain_hi": gain + 0.3, "rank": place + 1}
            rows.append(row | {"self_similarity": 0.5, "control_gain": 0.0, "n_images": 9})
    notes = {"dataset_rows": rows[:6], "family_rows": rows, "warnings": ["beware <of> this"]}
    return FactorTable(rows, {"score": "gain", "data": "planted"}, notes=notes)


def _invariance() -> InvarianceTable:
    rows = [
        {"model": model, "layer": "pool", "transform": f"turn{t}", "magnitude": 10.0 * m}
        | {"index": m, "class_id": -1, "class_name": "all", "invariance": value - 0.1 * m}
        | {"lo": value - 0.1 * m - 0.05, "hi": value - 0.1 * m + 0.05, "q25": 0.1, "q75": 0.9}
        | {"visible_fraction": 1.0 - 0.3 * m}
        for model, value in (("trained", 0.9), ("untrained", 0.5))
        for t in range(3)
        for m in range(4)
    ]
    table = InvarianceTable(rows, {"metric": "cosine"})
    difference = {"model": "trained", "other": "untrained", "layer": "pool", "transform": "turn0"}
    difference |= {"magnitude": 0.0, "index": 0, "difference": 0.4, "lo": 0.3, "hi": 0.5}
    table.notes["differences"] = DifferenceTable([difference | {"q_value": 0.01}]).to_dict()
    return table


def _line_up():
    table = _invariance()
    trained, untrained = (table.of_model(name) for name in ("trained", "untrained"))
    for place, row in enumerate(trained.rows):
        row["invariance"] += 0.01 * place
    return lines_up(_factors(), trained, untrained, n_permutations=50)


def _draw(kind, path):
    if kind == "invariance":
        return _invariance().plot(path)
    if kind == "line_up":
        return _line_up().plot(path)
    return _factors().plot(kind, path)


@pytest.mark.parametrize("kind", ["heatmap", "bars", "ridge", "invariance", "line_up"])
def test_pictures_are_written_whole(kind, tmp_path):
    path = _draw(kind, tmp_path / "picture.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 120 and pixels.mean() > 120
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_a_figure_without_a_file():
    assert hasattr(_factors().plot(), "savefig")


def test_dots_are_where_something_was_found():
    (axes, _) = _factors().plot("heatmap").axes
    (dots,) = [c for c in axes.collections if len(c.get_offsets())]
    assert len(dots.get_offsets()) == 15  # all but the first of each class


def test_bad_requests(tmp_path):
    with pytest.raises(InputError, match="kind is"):
        _factors().plot("pie")
    with pytest.raises(InputError, match="column is"):
        _factors().plot("heatmap", column="colour")
    with pytest.raises(InputError, match="must end in"):
        _factors().plot("bars", tmp_path / "picture.txt")
    with pytest.raises(InputError, match="no table of factors"):
        write_factors_html(tmp_path / "report.html", factors={})


def test_the_report(tmp_path):
    checks = CheckTable(
        [
            {"comparison": c, "condition": "none", "similarity": s, "lo": s, "hi": s}
            for c, s in (("within class", 0.4), ("across classes", 0.5))
        ]
    )
    parts = {
        "factors": {"erm": _factors()},
        "invariance": _invariance(),
        "line_ups": {"erm": _line_up()},
        "checks": {"erm": checks},
    }
    one = write_factors_html(tmp_path / "one.html", **parts).read_text("utf-8")
    two = write_factors_html(tmp_path / "two.html", **parts).read_text("utf-8")
    assert one == two
    assert "cat &amp; &lt;dog&gt;" in one and "<dog>" not in one
    assert "beware &lt;of&gt; this" in one and "not more alike" in one
    assert "<script" not in one and "http" not in one.replace("http-equiv", "")
    assert "Differences between networks" in one and "rho =" in one
    assert one.count("\u2022</td>") == 15
    few = write_factors_html(tmp_path / "few.html", factors={"erm": _factors()}).read_text("utf-8")
    assert "line up" not in few.split("</nav>")[0]
