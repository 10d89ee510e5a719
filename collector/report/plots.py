"""Plots as SVG, without scripts and without anything to load.

Importing this module raises CollectorError where pygal is not installed: it is an extra that only reports
need.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

from collector.errors import CollectorError
from collector.report.period import Period
from collector.text import printable

try:
    import pygal
    from pygal.style import Style
except ImportError as error:
    raise CollectorError(
        "pygal, which draws the report, is not installed. Install it with: "
        f"{sys.executable} -m pip install 'pygal>=3.1,<4'"
    ) from error

Points = list[tuple[float, float | None]]
"""Pairs of Unix seconds and value; a value None interrupts the line."""
Element = Any  # from lxml where that is installed, else from the standard library

_LEGEND_CHARACTERS, _LABEL_CHARACTERS = 60, 30
_BAR_LABELS = 8
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
    "truncate_legend": _LEGEND_CHARACTERS,
    "truncate_label": -1,
    "disable_xml_declaration": True,
}


def lines(period: Period, series: Mapping[str, Points]) -> str:
    """Draw one line for each series, interrupted at values None."""
    return _over_time(period, series, show_dots=False, allow_interruptions=True)


def dots(period: Period, series: Mapping[str, Points]) -> str:
    """Draw one dot for each point, for values that exist at some times only."""
    return _over_time(period, series, stroke=False, dots_size=2)


def residency(period: Period, series: Mapping[str, list[tuple[float, float]]]) -> str:
    """Draw one row for each name, with a horizontal bar for each pair of begin and end."""
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
            {"value": row, "label": printable(name)[:_LABEL_CHARACTERS]}
            for row, name in enumerate(points, start=1)
        ],
        style=Style(**{**_STYLE, "stroke_width": 16, "stroke_width_hover": 16}),
        height=60 + 30 * len(points),
        range=(0, len(points) + 1),
    )


def bars(period: Period, series: Mapping[str, Mapping[str, float]]) -> str:
    """Draw one bar for each minute, hour or day of the period, with the series stacked."""
    chart = pygal.StackedBar(
        **_LAYOUT,
        height=_height(len(series)),
        value_formatter=_format_value,
        x_labels_major_every=-(-len(period.bars) // _BAR_LABELS),
        show_minor_x_labels=False,
    )
    chart.x_labels = [bar[5:] for bar in period.bars]  # without the year
    for name, values in series.items():
        chart.add(printable(name), [values.get(bar) for bar in period.bars])
    return _render(chart)


def _over_time(period: Period, series: Mapping[str, Points], **layout: Any) -> str:
    """Draw series over the time of a period, with an axis from 0, so that small values look small."""
    series = {name: [(t, _finite(value)) for t, value in points] for name, points in series.items()}
    highest = max((value or 0 for points in series.values() for _, value in points), default=0)
    chart = pygal.XY(
        **{**_LAYOUT, "height": _height(len(series)), "range": (0, highest or 1), **layout},
        xrange=(period.begin, period.end),
        value_formatter=_format_value,
        x_value_formatter=period.tick_label,
    )
    chart.x_labels = period.ticks
    for name, points in series.items():
        chart.add(printable(name), points)
    return _render(chart)


def _finite(value: float | None) -> float | None:
    """Return a value, or None for infinity, which another program may have stored."""
    return value if value is not None and math.isfinite(value) else None


def _height(names: int) -> int:
    """Return the height of a plot, with a line of the legend below it for each name."""
    return 270 + 20 * names


def _format_value(value: float) -> str:
    return f"{value:,.10g}"


def _render(chart: Any) -> str:
    chart.add_xml_filter(_without_scripts)
    return str(chart.render(is_unicode=True))


def _without_scripts(svg: Element) -> Element:
    """Remove scripts, comments and what only the scripts read; add the value of each point as a `title`.

    pygal shows the value of a point by a script. A browser shows a `title` element without any.
    """
    for parent in list(svg.iter()):
        values = [child.text for child in parent if child.get("class") in ("value", "x_label")]
        for child in list(parent):
            is_chart_title = parent is svg and child.tag == "title"
            is_comment = callable(child.tag)
            if is_chart_title or is_comment or child.tag in ("script", "desc"):
                parent.remove(child)
        if values:
            pygal.etree.etree.SubElement(parent, "title").text = ": ".join(reversed(values))
    return svg
