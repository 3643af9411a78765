//! Charts as SVG elements: lines, steps and markers with bands, and stacked bars.
//!
//! Relevant if you want to draw your own figures. Charts are pure functions of their data: equal data gives equal text.
//!
//! Invariant: any data gives a well-formed picture. Values without a position (not finite, or not positive on a
//! logarithmic axis) are left out, and an empty picture says so.

mod axis;
mod bars;
mod canvas;
mod data;
mod describe;
mod geometry;
mod grid;
mod legend;
mod marks;

pub use bars::Bars;
pub use data::{Chart, Kind, Mark, Series, Size};
pub use grid::{Grid, GridCell};

use axis::Axis;
use canvas::{Anchor, Canvas, Dash, Font, Paint, SERIES_COLORS, svg};
use geometry::{Frame, Point, runs, stairs};
use legend::{Legend, SAMPLE};
use marks::{SIDE, Top, tops};
use maud::Markup;

const HEADING: Font = Font::new(15.0).bold();
const HEADING_LINE: f64 = 20.0;
const TICK: Font = Font::new(12.5);
const TICK_LINE: f64 = 15.0;
/// Space that the sample before a name at the end of a line takes.
const END: f64 = 27.0;

/// Colours of series as CSS: name of the variable, colour on light pages, colour on dark pages.
pub fn colors() -> impl Iterator<Item = (String, &'static str, &'static str)> {
    canvas::PALETTE.iter().enumerate().map(|(i, (light, dark))| (format!("--c{i}"), *light, *dark))
}

/// A chart with its layout.
struct Plot<'a> {
    chart: &'a Chart,
    width: f64,
    x: Axis,
    y: Axis,
    frame: Frame,
    tops: Vec<Top>,
    titles: Vec<String>,
    y_lines: Vec<String>,
    x_lines: Vec<String>,
    names: Vec<Vec<String>>,
    legend: Legend,
    /// Indices of the series in the legend.
    listed: Vec<usize>,
}

impl Chart {
    /// The chart as an `<svg>` element, as wide as its container.
    #[must_use]
    pub fn svg(&self) -> Markup {
        self.svg_of(Size::default())
    }

    /// The chart as an `<svg>` element of this natural size; letters have the same size in all of them.
    #[must_use]
    pub fn svg_of(&self, size: Size) -> Markup {
        let plot = Plot::new(self, size);
        let bottom = plot.frame.bottom() + plot.below();
        svg((size.width, bottom), &self.described(), |canvas| plot.draw(canvas))
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let bands = || self.series.iter().flat_map(|s| &s.band);
        let marked = |vertical: bool| {
            self.marks.iter().filter_map(move |mark| match mark {
                Mark::Vertical { at, .. } => vertical.then_some(*at),
                Mark::Horizontal { at, .. } => (!vertical).then_some(*at),
                Mark::Point { at, .. } => Some(if vertical { at.0 } else { at.1 }),
            })
        };
        let (x_log, names) = (self.x_log && self.x_names.is_empty(), self.x_names.len() as f64);
        let x_range = if names > 0.0 { Some((-0.5, names - 0.5)) } else { self.x_range };
        let xs = points().map(|p| p.0).chain(bands().map(|b| b.0)).chain(marked(true));
        let ys = points().map(|p| p.1).chain(bands().flat_map(|b| [b.1, b.2])).chain(marked(false));
        (Axis::new(xs, x_range, x_log), Axis::new(ys, self.y_range, self.y_log))
    }
}

impl<'a> Plot<'a> {
    fn new(chart: &'a Chart, size: Size) -> Self {
        let width = size.width;
        let (x, y) = chart.axes();
        let listed = chart.listed();
        let in_legend = if chart.end_labels { &[][..] } else { &listed[..] };
        let legend = Legend::new(in_legend.iter().map(|i| chart.series[*i].label.as_str()), width);
        let ticks = y.ticks(6);
        let left = ticks.iter().map(|(_, label)| TICK.width(label)).fold(18.0, f64::max) + 10.0;
        let beside = if chart.end_labels { &listed[..] } else { &[][..] };
        let ends = beside.iter().map(|i| (chart.series[*i].label.as_str(), END));
        let limits = chart.marks.iter().filter_map(|mark| match mark {
            Mark::Horizontal { at, label } => y.at(*at).map(|_| (label.as_str(), 8.0)),
            _ => None,
        });
        let room = |(label, more): (&str, f64)| {
            TICK.wrap(label, SIDE).iter().map(|line| TICK.width(line) + more).fold(0.0, f64::max)
        };
        let side = ends.chain(limits).map(room).fold(14.0, f64::max);
        let titles = HEADING.wrap(&chart.title, width);
        let y_lines = TICK.wrap(&chart.y_label, width);
        let mut frame = Frame { x: left, y: 0.0, width: width - left - side, height: size.plot_height };
        let (tops, rows) = tops(chart, &x, &frame, width);
        frame.y = heading(&titles) + legend.height() + TICK_LINE * (y_lines.len() + rows) as f64 + 12.0;
        let names = names(&chart.x_names, frame.width);
        let x_lines = TICK.wrap(&chart.x_label, frame.width);
        Plot { chart, width, x, y, frame, tops, titles, y_lines, x_lines, names, legend, listed }
    }

    /// Height of the labels under the plot.
    fn below(&self) -> f64 {
        let names = self.names.iter().map(Vec::len).max().unwrap_or(0).max(1);
        12.0 + TICK_LINE * (names + self.x_lines.len()) as f64 + 6.0
    }

    fn place(&self, (x, y): (f64, f64)) -> Option<Point> {
        let (x, y) = (self.x.at(x)?, self.y.at(y)?);
        Some((self.frame.x + x * self.frame.width, self.frame.bottom() - y * self.frame.height))
    }

    fn draw(&self, canvas: &mut Canvas) {
        let (chart, frame) = (self.chart, &self.frame);
        let mut y = 0.0;
        draw_heading(canvas, &self.titles, &mut y);
        self.legend.draw(canvas, (0.0, y), |canvas, i, at| sample(canvas, &chart.series[self.listed[i]], at));
        y += self.legend.height();
        for line in &self.y_lines {
            canvas.text((0.0, y + TICK_LINE / 2.0), line, TICK.muted(), Anchor::Left);
            y += TICK_LINE;
        }
        self.grid(canvas);
        let some = |s: &Series| s.points.iter().any(|p| self.place(*p).is_some());
        if !chart.series.iter().any(some) && chart.marks.is_empty() {
            let middle = (frame.x + frame.width / 2.0, frame.y + frame.height / 2.0);
            return canvas.text(middle, "no data", TICK.muted(), Anchor::Middle);
        }
        // All areas lie under all lines, and all lines under all markers.
        for (i, series) in chart.series.iter().enumerate() {
            self.band(canvas, series, self.aside(i));
        }
        let mut drawn = Vec::new();
        for (i, series) in chart.series.iter().enumerate() {
            drawn.extend(self.lines(canvas, series, self.aside(i)));
        }
        for (i, series) in chart.series.iter().enumerate().filter(|(_, s)| s.kind.marked()) {
            for point in series.points.iter().filter_map(|p| self.place(*p)) {
                let point = (point.0 + self.aside(i), point.1);
                if frame.holds(point) {
                    canvas.marker(point, 4.0, series.color % SERIES_COLORS);
                    drawn.push(vec![point, point]);
                }
            }
        }
        self.marks(canvas, y, &drawn);
    }

    /// Horizontal offset of a series' markers from the position of their name.
    fn aside(&self, index: usize) -> f64 {
        let marked = |s: &&Series| s.kind.marked();
        if self.names.is_empty() || !self.chart.series[index].kind.marked() {
            return 0.0;
        }
        let all = self.chart.series.iter().filter(marked).count();
        let before = self.chart.series[..index].iter().filter(marked).count();
        // The offset slants lines, so it is only as large as the markers need to be told apart.
        let most = if self.chart.series[index].kind == Kind::LineMarkers { 4.0 } else { 14.0 };
        let step = (0.7 * self.frame.width / self.names.len() as f64 / all as f64).min(most);
        (before as f64 - (all as f64 - 1.0) / 2.0) * step
    }

    fn grid(&self, canvas: &mut Canvas) {
        let frame = &self.frame;
        let mut free = f64::INFINITY;
        for (value, label) in self.y.ticks(6) {
            let Some((_, y)) = self.y.at(value).map(|at| (0.0, frame.bottom() - at * frame.height)) else {
                continue;
            };
            canvas.path(&[(frame.x, y), (frame.right(), y)], 1.0, (Paint::Ink, 0.12));
            if y + TICK_LINE / 2.0 <= free {
                canvas.text((frame.x - 7.0, y), &label, TICK.muted(), Anchor::Right);
                free = y - TICK_LINE / 2.0;
            }
        }
        let under = frame.bottom() + 6.0 + TICK_LINE / 2.0;
        if self.names.is_empty() {
            let mut free = -f64::INFINITY;
            for (value, label) in self.x.ticks(8) {
                let Some(x) = self.x.at(value).map(|at| frame.x + at * frame.width) else { continue };
                canvas.path(&[(x, frame.y), (x, frame.bottom())], 1.0, (Paint::Ink, 0.07));
                let half = TICK.width(&label) / 2.0;
                let middle = x.min(self.width - half);
                if middle - half >= free {
                    canvas.text((middle, under), &label, TICK.muted(), Anchor::Middle);
                    free = middle + half + 8.0;
                }
            }
        }
        for (i, lines) in self.names.iter().enumerate() {
            let x = frame.x + self.x.at(i as f64).unwrap_or(0.0) * frame.width;
            if i > 0 {
                let edge = x - 0.5 * frame.width / self.names.len() as f64;
                canvas.path(&[(edge, frame.y), (edge, frame.bottom())], 1.0, (Paint::Ink, 0.07));
            }
            for (row, line) in lines.iter().enumerate() {
                canvas.text((x, under + row as f64 * TICK_LINE), line, TICK.muted(), Anchor::Middle);
            }
        }
        canvas.path(&[(frame.x, frame.bottom()), (frame.right(), frame.bottom())], 1.2, (Paint::Ink, 0.6));
        let names = self.names.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut y = under + names as f64 * TICK_LINE + 2.0;
        for line in &self.x_lines {
            canvas.text((frame.x + frame.width / 2.0, y), line, TICK.muted(), Anchor::Middle);
            y += TICK_LINE;
        }
    }

    fn band(&self, canvas: &mut Canvas, series: &Series, aside: f64) {
        let (frame, paint) = (&self.frame, Paint::Color(series.color % SERIES_COLORS));
        let ends = series.band.iter().map(|(x, low, high)| {
            let (low, high) = (self.place((*x, *low))?, self.place((*x, *high))?);
            Some((low, high)).filter(|(low, _)| (frame.x - 1e-6..=frame.right() + 1e-6).contains(&low.0))
        });
        if series.kind.marked() {
            for (low, high) in ends.flatten().map(|(l, h)| ((l.0 + aside, l.1), (h.0 + aside, h.1))) {
                if (high.1 < frame.y && low.1 < frame.y)
                    || (high.1 > frame.bottom() && low.1 > frame.bottom())
                {
                    continue;
                }
                let ([low, high], cap) = ([frame.clamp(low), frame.clamp(high)], 3.5);
                canvas.path(&[low, high], 1.4, (paint, 0.75));
                for (x, y) in [low, high] {
                    canvas.path(&[(x - cap, y), (x + cap, y)], 1.4, (paint, 0.75));
                }
            }
            return;
        }
        // Of edges too close to be told apart, some are enough.
        let mut ends: Vec<Option<(Point, Point)>> = ends.collect();
        ends.dedup_by(|b, a| matches!((a, b), (Some((a, _)), Some((b, _))) if (a.0 - b.0).abs() < 0.4));
        for run in ends.split(Option::is_none) {
            let lows = run.iter().flatten().map(|(low, _)| frame.clamp(*low));
            let highs = run.iter().flatten().rev().map(|(_, high)| frame.clamp(*high));
            canvas.area(&lows.chain(highs).collect::<Vec<_>>(), (paint, 0.16));
        }
    }

    /// Draws the lines of a series and returns them.
    fn lines(&self, canvas: &mut Canvas, series: &Series, aside: f64) -> Vec<Vec<Point>> {
        if series.kind == Kind::Markers {
            return Vec::new();
        }
        let paint = (Paint::Color(series.color % SERIES_COLORS), 1.0);
        let places = series.points.iter().map(|p| self.place(*p).map(|(x, y)| (x + aside, y)));
        let mut all = Vec::new();
        for run in runs(places) {
            let run = if series.kind == Kind::Steps { stairs(&run) } else { run };
            // A point between two gaps has no line, but is drawn as data.
            if let [point] = run[..]
                && self.frame.holds(point)
                && !series.kind.marked()
            {
                canvas.marker(point, 2.5, series.color % SERIES_COLORS);
            }
            for line in self.frame.cut_line(&run) {
                match series.kind {
                    Kind::Dashed => canvas.dashes(&line, Dash::Bold, paint),
                    _ => canvas.path(&line, 2.2, paint),
                }
                all.push(line);
            }
        }
        all
    }
}

/// Names under the plot, each wrapped to its share of the width and of at most five lines.
fn names(all: &[String], width: f64) -> Vec<Vec<String>> {
    let slot = width / all.len().max(1) as f64 - 6.0;
    let lines = |name: &String| {
        let mut lines = TICK.wrap(name, slot);
        if lines.len() > 5 {
            lines.truncate(5);
            lines[4] = shortened(TICK, &format!("{}……", lines[4]), slot);
        }
        lines
    };
    all.iter().map(lines).collect()
}

/// Draws a legend sample of a series.
fn sample(canvas: &mut Canvas, series: &Series, (x, y): Point) {
    let color = series.color % SERIES_COLORS;
    let (line, paint) = ([(x, y), (x + SAMPLE, y)], (Paint::Color(color), 1.0));
    match series.kind {
        Kind::Dashed => canvas.dashes(&line, Dash::Bold, paint),
        Kind::Markers => {}
        _ => canvas.path(&line, 2.6, paint),
    }
    if series.kind.marked() {
        canvas.marker((x + SAMPLE / 2.0, y), 4.5, color);
    }
}

/// Height of a title in the picture.
fn heading(titles: &[String]) -> f64 {
    if titles.is_empty() { 4.0 } else { HEADING_LINE * titles.len() as f64 + 6.0 }
}

fn draw_heading(canvas: &mut Canvas, titles: &[String], y: &mut f64) {
    for (i, title) in titles.iter().enumerate() {
        canvas.text((0.0, HEADING_LINE * (i as f64 + 0.5)), title, HEADING, Anchor::Left);
    }
    *y += heading(titles);
}

/// The text, shortened to fit.
fn shortened(font: Font, text: &str, most: f64) -> String {
    if font.width(text) <= most {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if font.width(&format!("{kept}{c}…")) > most {
            break;
        }
        kept.push(c);
    }
    kept + "…"
}

#[cfg(test)]
mod tests;
