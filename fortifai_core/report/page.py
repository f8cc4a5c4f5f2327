"""The report of any experiment: one self-contained HTML file, its figures as SVG and PNG, its tables as CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fortifai_core import wording
from fortifai_core.charts.palette import CHART_CSS, PALETTE, arm_class
from fortifai_core.charts.png import png
from fortifai_core.report import family_page, language_page
from fortifai_core.report.contents import Contents, Slide
from fortifai_core.report.data import Report, ReportData
from fortifai_core.report.family_analysis import FamilyReport
from fortifai_core.report.profile import profile_svg, profile_tables, ranking_words, summary
from fortifai_core.report.templating import render_page

FILTERS: dict[str, Callable[..., object]] = {
    "arm_class": arm_class,
    "arm_title": wording.arm_title,
    "number": wording.number,
    "percent": wording.percent,
    "share": wording.share,
    "score": lambda value: wording.share(value, 1) if 0 <= value <= 1 else f"{value:.4g}",
    "span": wording.span,
    "points": wording.points,
    "duration": wording.duration,
    "moment": wording.moment,
    "between_moments": wording.between_moments,
}


def contents_of(report: Report) -> Contents:
    """What a report shows, worked out from its data: the same data gives the same contents."""
    if isinstance(report, ReportData):
        return _profiled(language_page.contents(report))
    assert isinstance(report, FamilyReport)
    return _profiled(family_page.contents(report))


def _profiled(contents: Contents) -> Contents:
    """With the profile's figure and tables among the files, where there is a definition to judge by."""
    profile = contents.profile
    drawing = profile_svg(profile, width=760, standalone=True)
    if not drawing:
        return contents
    slide = Slide(f"{contents.report.experiment}: collapse profile", [("", drawing)])
    return replace(
        contents,
        tables=[*contents.tables, *profile_tables(profile)],
        drawings={**contents.drawings, "profile": drawing},
        slides={**contents.slides, "profile": slide},
    )


def build_report(report: Report, directory: str | Path) -> tuple[Contents, list[Path]]:
    """Write report.html, figures/*.svg and *.png, and tables/*.csv; return what they show, and their paths.

    The same data gives the same files. How long things took is in times.html and tables/times.csv alone, so that all
    other files of two equal runs are equal. `directory` is made if need be; files in it are overwritten.
    """
    directory = Path(directory)
    (directory / "tables").mkdir(parents=True, exist_ok=True)
    (directory / "figures").mkdir(exist_ok=True)
    contents = contents_of(report)
    page = directory / "report.html"
    page.write_text(render(contents), encoding="utf-8")
    files = [page]
    for stem, drawing in contents.drawings.items():
        files.append(directory / "figures" / f"{stem}.svg")
        files[-1].write_text(drawing, encoding="utf-8")
    for stem, slide in contents.slides.items():
        files.append(directory / "figures" / f"{stem}.png")
        png(slide.drawings, files[-1], title=slide.title)
    tables = list(contents.tables)
    if contents.seconds.rows:
        files.append(directory / "times.html")
        files[-1].write_text(render(contents, template="times.html"), encoding="utf-8")
        tables.append(contents.seconds.table)
    for table in tables:
        files.append(directory / "tables" / f"{table.name}.csv")
        table.write_csv(files[-1])
    return contents, files


def render(contents: Contents, template: str = "") -> str:
    """A whole page: the report's, or another `template`'s."""
    from markupsafe import Markup

    return render_page(
        template or contents.template,
        filters=FILTERS,
        config=contents.report.config,
        data=contents.report,
        headline=contents.headline,
        facts=contents.facts,
        times=contents.seconds,
        shared=isinstance(contents.report, FamilyReport),
        profile=contents.profile,
        profile_figure=Markup(profile_svg(contents.profile, width=760)),
        profile_sentences=summary(contents.profile) if contents.profile.definitions else [],
        profile_ranking=ranking_words(contents.profile),
        styles=Markup(PALETTE + CHART_CSS),
        **contents.values,
    )
