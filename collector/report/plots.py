"""Plots as SVG within a page: no script, nothing that is loaded.

Raises CollectorError where pygal is not installed: it is an extra that only reports need.
"""

import sys
from collections.abc import Mapping
from typing import Any

from collector.errors import CollectorError
from collector.report.period import Period
from collector.text import plain

try:
    import pygal
    from pygal.style import Style
except ImportError as error:
    raise CollectorError(
        "pygal, which draws the report, is not installed. Install it with: "
        f"{sys.executable} -m pip install 'pygal>=3.1,<4'"
    ) from error

Points = list[tuple[float, float | None]]
"""Unix seconds and value; a value None breaks the line."""
Element = Any  # of lxml where that is installed, else of the standard library

_NAME_CHARACTERS, _STAY_CHARACTERS = 60, 30
_LABELLED_BARS = 8
_STYLE = {
    "background": "transparent",
    "plot_background": "transparent",
    "font_family": "system-ui, sans-serif",
    "legend_font_size": 12,
    "label_font_size": 11,
    "major_label_font_size": 11,
    "stroke_width": 2,
    "guide_stroke_color": "#ddd",
    "guide_stroke_dasharray": "0",
    "major_guide_stroke_color": "#ddd",
    "major_guide_stroke_dasharray": "0",
    "opacity": ".9",
    "transition": "0s",
    "colors": (
        "#4269d0",
        "#efb118",
        "#ff725c",
        "#3ca951",
        "#6cc5b0",
        "#a463f2",
        "#ff8ab7",
        "#9c6b4e",
        "#97bbf5",
    ),
}
_LAYOUT = {
    "style": Style(**_STYLE),
    "js": (),
    "width": 900,
    "margin": 8,
    "max_scale": 6,
    "legend_at_bottom": True,
    "legend_at_bottom_columns": 1,
    "truncate_legend": _NAME_CHARACTERS,
    "truncate_label": -1,
    "disable_xml_declaration": True,
}


def lines(period: Period, series: Mapping[str, Points]) -> str:
    """One line a series, broken where nothing is known."""
    return _over_time(period, series, show_dots=False, allow_interruptions=True)


def dots(period: Period, series: Mapping[str, Points]) -> str:
    """One dot a point, for what is known at times only."""
    return _over_time(period, series, stroke=False, dots_size=2)


def stays(period: Period, series: Mapping[str, list[tuple[float, float]]]) -> str:
    """One row a name, which stands before it, with a bar from each beginning to its end."""
    points: dict[str, Points] = {
        name: [point for begin, end in spans for point in ((begin, row), (end, row), (end, None))]
        for row, (name, spans) in enumerate(series.items(), start=1)
    }
    return _over_time(
        period,
        points,
        show_dots=False,
        allow_interruptions=True,
        show_legend=False,
        y_labels=[
            {"value": row, "label": plain(name)[:_STAY_CHARACTERS]}
            for row, name in enumerate(points, start=1)
        ],
        style=Style(**{**_STYLE, "stroke_width": 16, "stroke_width_hover": 16}),
        height=60 + 30 * len(points),
        range=(0, len(points) + 1),
    )


def bars(period: Period, series: Mapping[str, Mapping[str, float]]) -> str:
    """One bar a minute, hour or day of the period, with the series on top of each other."""
    chart = pygal.StackedBar(
        **_LAYOUT,
        height=_height(len(series)),
        value_formatter=_written,
        x_labels_major_every=-(-len(period.bars) // _LABELLED_BARS),
        show_minor_x_labels=False,
    )
    chart.x_labels = [bar[5:] for bar in period.bars]  # without the year
    for name, values in series.items():
        chart.add(plain(name), [values.get(bar) for bar in period.bars])
    return _drawn(chart)


def _over_time(period: Period, series: Mapping[str, Points], **layout: Any) -> str:
    chart = pygal.XY(
        **{**_LAYOUT, "height": _height(len(series)), "range": _from_zero(series), **layout},
        xrange=(period.begin, period.end),
        value_formatter=_written,
        x_value_formatter=period.tick_label,
    )
    chart.x_labels = period.ticks
    for name, points in series.items():
        chart.add(plain(name), points)
    return _drawn(chart)


def _height(names: int) -> int:
    """Room for a plot, and for its legend below it."""
    return 270 + 20 * names


def _from_zero(series: Mapping[str, Points]) -> tuple[float, float]:
    """A scale that begins at 0, so that what is small looks small."""
    values = [value for points in series.values() for _, value in points if value is not None]
    return 0, max(values, default=0) or 1


def _written(value: float) -> str:
    return f"{value:,.10g}"


def _drawn(chart: Any) -> str:
    chart.add_xml_filter(_alone)
    return str(chart.render(is_unicode=True))


def _alone(svg: Element) -> Element:
    """The SVG without scripts, comments, and what only its scripts would read."""
    for parent in list(svg.iter()):
        told = [child.text for child in parent if child.get("class") in ("value", "x_label")]
        for child in list(parent):
            names_pygal = parent is svg and child.tag == "title"
            if names_pygal or child.tag in ("script", "desc") or callable(child.tag):  # a comment's is
                parent.remove(child)
        if told:  # a browser shows it by itself to whoever points at it
            pygal.etree.etree.SubElement(parent, "title").text = ": ".join(reversed(told))
    return svg
