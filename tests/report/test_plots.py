"""Plots say what this run's numbers say, are the same each time, and are left out with a reason where data is missing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paft_plugin.drawing import (
    CSS_NAMES,
    Drawn,
    Missing,
    Plot,
    Style,
    as_png,
    as_svg,
    chart,
    new_figure,
    style_of,
    styles_of,
)
from paft_plugin.evaluation.arms import Arm, arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, Results, read_results
from paft_plugin.inspection.inspected import Inspection, write_inspection
from paft_plugin.inspection.plots import (
    OUTCOMES,
    PLOTS,
    charts_of,
    conflict_share,
    elections_chart,
    histograms,
    interference_map,
    luminance,
    pair_matrix,
    plotted_pairs,
    sparsity_by_layer,
    write_plots,
)
from paft_plugin.inspection.training_log import Curve, read_curve
from paft_plugin.report import plots as of_runs
from paft_plugin.report.choice import choose
from paft_plugin.report.plots import RunData, alpha_chart, loss_chart, strength_chart, tax_chart
from paft_plugin.report.run_report import write_report
from paft_plugin.search.alpha_curve import AlphaCurve, AlphaPoint, grid
from tests.report.runs import inspect, random_delta, three_deltas, write_branch, write_run

DELTAS = three_deltas()


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    return inspect(DELTAS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("plots") / "run")


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    found = read_results(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def curves(run: Path) -> list[Curve]:
    return [curve for name in ("sft", "sft-l1", "dpo") if (curve := read_curve(run, name)) is not None]


def plot(drawn: Plot | Missing) -> Plot:
    assert isinstance(drawn, Plot), drawn
    return drawn


def way(arm: str, skill: float = 1.0) -> AlphaCurve:
    """Five points from SFT to preferences, of which the third is taken."""
    points = [
        AlphaPoint(
            alpha=alpha,
            scores={"skill": skill * (1 - alpha**3), "preference": 10 * alpha},
            intervals={"skill": (0.8 * skill * (1 - alpha**3), 1.0), "preference": (10 * alpha - 1, 10 * alpha + 1)},
            calibration={"skill": 0.1 + 0.2 * alpha},
        )
        for alpha in grid(5)
    ]
    measures = (
        Measure("skill", "task", "acc", "none", higher_is_better=True),
        Measure("preference", "held_out/preference", "gain", "none", higher_is_better=True),
    )
    goals, base = {"skill": 0.0, "preference": 1.0}, {"skill": 0.1, "preference": 0.0}
    return AlphaCurve(
        arm=arm, measures=measures, goals=goals, base=base, points=tuple(points), chosen=0.5, items={"skill": 50}
    )


def test_the_way_from_sft_to_preferences_is_drawn_where_there_is_one(results: Results, tmp_path: Path) -> None:
    drawn = plot(alpha_chart(RunData(results, choose(results), ways=[way("paft-alpha")])))
    skill, preference, calibration = drawn.figure.axes
    assert (skill.get_ylabel(), preference.get_ylabel(), calibration.get_ylabel()) == ("skill", "preference", "ECE")
    assert list(calibration.lines[0].get_ydata()) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert "paft-alpha takes alpha 0.5" in drawn.caption
    folder = write_run(tmp_path / "run")
    assert 'id="alpha"' not in write_report(folder).read_text(encoding="utf-8")
    way("paft-alpha").write(folder / "alpha" / "paft-alpha" / "alpha.json")
    assert '<figure id="alpha"' in write_report(folder).read_text(encoding="utf-8")


def every_plot(inspection: Inspection, results: Results, curves: Sequence[Curve]) -> list[Plot]:
    run = RunData(
        results, choose(results), curves, {"sft-l1": ("1e-05", 0.9)}, [way("parallel-alpha"), way("paft-alpha", 0.9)]
    )
    drawn = [*(each(inspection) for each in charts_of(inspection)), *(each(run) for each in of_runs.PLOTS)]
    return list(map(plot, drawn))


@chart("entries", "Entries of every delta", "deltas")
def entries(inspection: Inspection) -> Drawn | str:
    """A plot that somebody adds."""
    figure = new_figure()
    figure.subplots().bar([delta.name for delta in inspection.deltas], 1.0)
    return Drawn(figure, "As many as there are.", "Bar chart.")


@chart("arms", "How many arms there are", "training")
def arms(run: RunData) -> Drawn | str:
    return f"There are {len(run.results.arms)}, which needs no plot."


def test_a_plot_that_is_added_to_the_list_is_a_file_and_on_the_page_and_in_the_report(
    inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paft_plugin.inspection.plots.PLOTS", (*PLOTS, entries))
    monkeypatch.setattr("paft_plugin.report.plots.PLOTS", (*of_runs.PLOTS, arms))
    write_inspection(inspection, tmp_path)
    assert [file.name for file in write_plots(inspection, tmp_path)] == [
        "sparsity.png", "histogram.png", "interference.png", "entries.png"
    ]  # fmt: skip
    report = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    for page in (write_report(tmp_path).read_text(encoding="utf-8"), report):
        for file in tmp_path.glob("*.png"):
            assert f'<figure id="{file.stem}"' in page
    assert "There are 9, which needs no plot." in report


def test_the_same_data_gives_the_same_bytes(inspection: Inspection, results: Results, curves: list[Curve]) -> None:
    once, again = every_plot(inspection, results, curves), every_plot(inspection, results, curves)
    assert [as_svg(one) for one in once] == [as_svg(one) for one in again]
    assert [as_png(one) for one in once] == [as_png(one) for one in again]
    assert b"tEXt" not in as_png(once[0])  # neither a date nor a version


def test_svg_takes_the_colours_of_its_page_and_nothing_from_elsewhere(
    inspection: Inspection, results: Results, curves: list[Curve]
) -> None:
    seen: set[str] = set()
    for one in every_plot(inspection, results, curves):
        svg = as_svg(one)
        root = ElementTree.fromstring(svg)  # noqa: S314 - our own
        assert root.get("role") == "img"
        assert root.get("aria-label") == one.alt
        assert not re.findall(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://", svg)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert all(name.startswith(f"{one.name}-") for name in ids)
        assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", svg)) <= set(ids)
        assert not seen & set(ids)  # several plots share a page
        seen |= set(ids)
        bare = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", svg)
        assert not [colour for colour in CSS_NAMES if colour.lower() in bare.lower()]


def test_captions_hold_the_numbers_of_the_run(inspection: Inspection, results: Results, curves: list[Curve]) -> None:
    captions = {one.name: one.caption for one in every_plot(inspection, results, curves)}
    total = inspection.delta("sft-l1").figures.total
    assert f"sft-l1: {total.sparsity(1e-5):.1%} in total" in captions["sparsity"]
    assert f"hold {total.top_1_percent:.0%} of ‖δ‖₁" in captions["histogram"]
    pair = next(pair for pair in inspection.pairs if (pair.first, pair.second) == ("sft-l1", "dpo"))
    conflicts = pair.figures.total.overlap["1e-05"].conflicts / pair.figures.total.entries
    assert f"sft-l1 and dpo: {conflicts:.1%} in total" in captions["interference"]
    assert "skill 0.900 and preference 0.995, an alignment tax of +0.100" in captions["tax"]
    assert "Ringed: paft-ties, skill 1.000 and preference 1.000" in captions["tax"]
    assert "λ goes from 1e-06 to 2.7e-05" in captions["strength"]
    assert "20.0% (step 10) to 80.0% (step 40); dotted: its target, 90%" in captions["strength"]
    assert "of sft-l1 ends at 0.150, without it at 0.150" in captions["loss"]


def test_the_extremes_in_a_caption_are_those_of_the_layers() -> None:
    uneven = random_delta(5, 1e-3, 0.0)
    for (layer, _), values in uneven.items():
        if layer == 2:
            values.zero_()
    caption = plot(sparsity_by_layer(inspect({"sft": uneven}))).caption
    assert "to 100.0% in layer 2." in caption


def test_a_sparser_delta_lies_higher(inspection: Inspection) -> None:
    lines = plot(sparsity_by_layer(inspection)).figure.axes[0].get_lines()
    heights = {line.get_label(): min(line.get_ydata()) for line in lines}  # type: ignore[arg-type]
    assert heights["sft-l1"] > max(heights["sft"], heights["dpo"])


def test_the_histogram_holds_every_entry(inspection: Inspection) -> None:
    patches = plot(histograms(inspection)).figure.axes[0].patches
    assert len(patches) == 3
    for patch in patches:
        assert patch.get_data().values.sum() == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_the_map_shows_the_pairs_that_a_fusion_could_combine(inspection: Inspection) -> None:
    assert [(pair.first, pair.second) for pair in plotted_pairs(inspection)] == [("sft", "dpo"), ("sft-l1", "dpo")]
    twins = inspect({name: DELTAS[name] for name in ("sft", "sft-l1")})
    assert [(pair.first, pair.second) for pair in plotted_pairs(twins)] == [("sft", "sft-l1")]
    many = inspect({f"delta-{seed}": random_delta(seed, 1e-3, 0.5, layers=2) for seed in range(4)})
    drawn = plot(interference_map(many))
    assert "Only in the table: 2 more." in drawn.caption
    assert len([axes for axes in drawn.figure.axes if axes.get_title("left")]) == 4


@pytest.mark.parametrize("count", [3, 4, 8])
def test_of_many_branches_every_one_is_named_and_drawn_in_a_style_of_its_own(count: int) -> None:
    names = [f"branch-{place}" + "-l1" * (place % 2) for place in range(count)]
    many = inspect({name: random_delta(seed, 1e-3, 0.5, layers=2) for seed, name in enumerate(names)})
    assert charts_of(many) == list(PLOTS)
    lines = plot(sparsity_by_layer(many)).figure.axes[0].lines
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == count
    panels = plot(elections_chart(many)).figure.axes
    assert [label.get_text() for label in panels[0].get_yticklabels()] == names
    for axes in panels:
        ends = [patch.get_x() + patch.get_width() for patch in axes.patches[-count:]]  # type: ignore[attr-defined]
        assert ends == pytest.approx([1.0] * count)
        assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in axes.patches}) == len(OUTCOMES)
    cosine = plot(pair_matrix(many)).figure.axes[0]
    assert len(cosine.texts) == count * (count - 1) / 2
    assert [label.get_text() for label in cosine.get_xticklabels()] == names[:-1]


def test_numbers_on_the_map_can_be_read(inspection: Inspection) -> None:
    from matplotlib.colors import to_rgb

    panels = [axes for axes in plot(interference_map(inspection)).figure.axes if axes.images]
    assert panels
    for panel in panels:
        (image,) = panel.images
        cells = image.get_array().flatten()  # type: ignore[union-attr]
        assert len(panel.texts) == len(cells)
        for share, text in zip(cells, panel.texts, strict=True):
            below, above = sorted((luminance(image.to_rgba(share)[:3]), luminance(to_rgb(text.get_color()))))
            assert (above + 0.05) / (below + 0.05) >= 4.5


def test_opposite_deltas_conflict_everywhere_and_equal_ones_nowhere() -> None:
    dense = random_delta(0, 1.0, 0.0)
    assert all(bool((values.abs() > 1e-5).all()) for values in dense.values())
    for sign, share in ((-1, "100.0%"), (1, "0.0%")):
        pair = inspect({"sft": dense, "dpo": {place: sign * values for place, values in dense.items()}})
        assert f"sft and dpo: {share} in total" in plot(interference_map(pair)).caption


def test_a_large_model_and_odd_names_are_drawn() -> None:
    deep = inspect({"<b>&": random_delta(0, 1e-3, 0.5, layers=40), "b": random_delta(1, 1e-3, 0.5, layers=40)})
    for one in (plot(each(deep)) for each in charts_of(deep)):
        ElementTree.fromstring(as_svg(one))  # noqa: S314
        assert "<b>" not in as_svg(one)
    assert plot(interference_map(deep)).wide


def test_no_two_series_look_alike() -> None:
    def styles(*names: str) -> dict[str, Style]:
        return styles_of([arm_named(name) for name in names])

    names = ["sft", "sft-l1", "dpo", "sequential", "parallel-ties", "paft-ties"]
    assert len({(style.colour, style.marker, style.line) for style in styles(*names).values()}) == len(names)
    same = ["delta-a", "delta-b", "delta-c"]
    assert len({style_of(arm_named(name)) for name in same}) == 1
    assert len(set(styles(*same).values())) == len(same)
    branches = styles("sft-l1", "dpo", "sft", "orpo")
    assert {name: branches[name] for name in ("sft-l1", "dpo", "sft")} == {
        name: style_of(arm_named(name)) for name in ("sft-l1", "dpo", "sft")
    }
    assert len({style.colour for style in branches.values()}) == 4
    assert len(set(styles(*(f"arm-{place}" for place in range(12))).values())) == 12


Draw = Callable[[], Plot | Missing]


def test_what_is_missing_is_said_in_one_sentence(inspection: Inspection, results: Results, curves: list[Curve]) -> None:
    zero = {place: values * 0 for place, values in DELTAS["sft"].items()}
    silent = [replace(curve, loss=(float("nan"),) * len(curve.steps)) for curve in curves]
    unscored = results.model_copy(update={"arms": results.arms[:1]})
    nothing = results.model_copy(update={"skills": ()})

    def run(of: Results, curves: Sequence[Curve] = ()) -> RunData:
        return RunData(of, choose(of), curves)

    cases: list[Draw] = [
        lambda: sparsity_by_layer(inspection.model_copy(update={"thresholds": ()})),
        lambda: sparsity_by_layer(inspection.model_copy(update={"deltas": ()})),
        lambda: histograms(inspect({"sft": zero})),
        lambda: interference_map(inspect(DELTAS, with_pairs=False)),
        lambda: interference_map(inspection.model_copy(update={"thresholds": ()})),
        lambda: tax_chart(run(nothing)),
        lambda: tax_chart(run(unscored)),
        lambda: strength_chart(run(results, curves[:1])),
        lambda: strength_chart(run(results)),
        lambda: loss_chart(run(results, silent)),
        lambda: loss_chart(run(results, curves[2:])),
    ]
    for draw in cases:
        drawn = draw()
        assert isinstance(drawn, Missing)
        assert drawn.why.endswith(".")


def test_a_controller_that_waits_is_drawn_in_decades_and_steps_are_whole(run: Path, results: Results) -> None:
    curve = read_curve(run, "sft-l1")
    assert curve is not None
    short = replace(curve, steps=(1, 2, 3, 4), lambda_=(0.0, 1e-5, 1e-4, 1e-3))
    above, below = plot(strength_chart(RunData(results, choose(results), [short]))).figure.axes
    assert above.get_yscale() == "log"
    assert all(tick == int(tick) for tick in below.get_xticks())


def test_one_branch_alone_and_a_constant_strength_are_drawn(tmp_path: Path, results: Results) -> None:
    write_branch(tmp_path, "sft")
    curve = read_curve(tmp_path, "sft")
    assert curve is not None
    assert (
        "no losses of an SFT branch with the penalty"
        in plot(loss_chart(RunData(results, choose(results), [curve]))).caption
    )
    for strength in (0.0, 1e-6):
        constant = replace(curve, lambda_=(strength,) * 4, l1_norm=(1.0,) * 4, sparsity={"1e-05": (0.5,) * 4})
        assert (
            f"λ stays at {strength:.3g}" in plot(strength_chart(RunData(results, choose(results), [constant]))).caption
        )


def test_of_many_deltas_each_has_a_histogram_and_the_map_shows_the_worst_pairs() -> None:
    many = {
        f"branch{place}{end}": random_delta(place, 1e-3, 0.5, layers=2) for place in range(3) for end in ("", "-l1")
    }
    inspection = inspect(many)
    drawn = plot(histograms(inspection))
    assert [axes.get_title("left") for axes in drawn.figure.axes] == list(many)
    for axes in drawn.figure.axes:
        (bars,) = axes.patches
        heights = bars.get_data().values  # type: ignore[attr-defined]
        assert axes.get_ylim()[1] >= heights.max()
    assert drawn.wide
    shown = plotted_pairs(inspection)
    assert not [pair for pair in shown if pair.second == f"{pair.first}-l1"]
    least = min(conflict_share(pair.figures.total, 1e-5) for pair in shown)
    rest = [pair for pair in inspection.pairs if pair not in shown and pair.second != f"{pair.first}-l1"]
    assert all(conflict_share(pair.figures.total, 1e-5) <= least for pair in rest)


def test_strengths_of_several_branches_are_named_above_and_their_targets_have_their_colours(
    curves: list[Curve], results: Results
) -> None:
    curve = next(curve for curve in curves if curve.branch == "sft-l1")
    several = [replace(curve, branch=f"{name}-l1") for name in "abc"]
    targets = {one.branch: ("1e-05", 0.5 + place / 10) for place, one in enumerate(several)}
    figure = plot(strength_chart(RunData(results, choose(results), several, targets))).figure
    below, (legend,) = figure.axes[1], figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{name}-l1, |δ| ≤ 1e-5" for name in "abc"]
    lines = {line.get_label(): line.get_color() for line in below.lines if not str(line.get_label()).startswith("_")}
    dotted = [line for line in below.lines if str(line.get_label()).startswith("_")]
    assert [(line.get_ydata()[0], line.get_color()) for line in dotted] == [
        (target, colour) for (_, target), colour in zip(targets.values(), lines.values(), strict=True)
    ]


def test_losses_of_several_branches_are_those_of_twins(curves: list[Curve], results: Results) -> None:
    of = {name: ArmResult(arm=Arm(name=name, kind="branch", role="sft")) for name in ("a", "b")}
    of |= {
        f"{n}-l1": ArmResult(arm=Arm(name=f"{n}-l1", kind="branch", role="sft", penalised=True, twin=n)) for n in "ab"
    }
    several = [replace(curves[0], branch=name, loss=(1.0 + place,) * 4) for place, name in enumerate(of)]
    drawn = plot(loss_chart(RunData(results.model_copy(update={"arms": tuple(of.values())}), choose(results), several)))
    assert "of a-l1 ends at 3.000, without it at 1.000 and of b-l1 ends at 4.000, without it at 2.000" in drawn.caption
