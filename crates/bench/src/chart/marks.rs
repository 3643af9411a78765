//! Reference lines, ringed points, and the labels beside the plot.
//!
//! Invariant: labels to the right of the plot do not overlap.

use super::axis::Axis;
use super::canvas::{Anchor, Canvas, Dash, Paint, SERIES_COLORS};
use super::geometry::{Frame, Point, apart, beside, runs};
use super::{Chart, Kind, Mark, Plot, Series, TICK, TICK_LINE};

/// A label to the right of the plot.
struct Side<'a> {
    /// Where its line ends.
    from: Point,
    lines: Vec<String>,
    /// The series that it names.
    series: Option<&'a Series>,
}

impl Plot<'_> {
    /// Draws the marks; `top` is the upper end of the rows of labels above the plot.
    pub(super) fn marks(&self, canvas: &mut Canvas, top: f64, drawn: &[Vec<Point>]) {
        let mut drawn = drawn.to_vec();
        self.verticals(canvas, top);
        drawn
            .extend(self.tops.iter().map(|mark| vec![(mark.x, self.frame.y), (mark.x, self.frame.bottom())]));
        let mut sides = self.horizontals(canvas, &mut drawn);
        self.points(canvas, &drawn);
        if self.chart.end_labels {
            sides.extend(self.ends());
        }
        self.sides(canvas, &sides);
    }

    fn verticals(&self, canvas: &mut Canvas, top: f64) {
        for mark in &self.tops {
            let from = top + 4.0 + TICK_LINE * (mark.row + mark.lines.len()) as f64;
            let line = [(mark.x, from), (mark.x, self.frame.bottom())];
            canvas.dashes(&line, Dash::Fine, (Paint::Ink, 0.65));
        }
        for mark in &self.tops {
            for (i, line) in mark.lines.iter().enumerate() {
                let y = top + 2.0 + TICK_LINE * (mark.row + i) as f64;
                canvas.rect((mark.left, y), (mark.width, TICK_LINE), (Paint::Paper, 1.0));
                canvas.text((mark.left, y + TICK_LINE / 2.0), line, TICK, Anchor::Left);
            }
        }
    }

    fn horizontals(&self, canvas: &mut Canvas, drawn: &mut Vec<Vec<Point>>) -> Vec<Side<'_>> {
        let frame = &self.frame;
        let mut sides = Vec::new();
        for mark in &self.chart.marks {
            let Mark::Horizontal { at, label } = mark else { continue };
            let Some(part) = self.y.at(*at).filter(|part| (0.0..=1.0).contains(part)) else { continue };
            let y = frame.bottom() - part * frame.height;
            let line = vec![(frame.x, y), (frame.right(), y)];
            canvas.dashes(&line, Dash::Fine, (Paint::Ink, 0.65));
            drawn.push(line);
            sides.push(Side { from: (frame.right(), y), lines: TICK.wrap(label, SIDE), series: None });
        }
        sides
    }

    fn points(&self, canvas: &mut Canvas, drawn: &[Vec<Point>]) {
        let mut labels: Vec<Frame> = Vec::new();
        for mark in &self.chart.marks {
            let Mark::Point { at, label } = mark else { continue };
            let Some(point) = self.place(*at).filter(|p| self.frame.holds(*p)) else { continue };
            canvas.ring(point, 7.0, 1.6, Paint::Ink);
            let lines = TICK.wrap(label, 200.0);
            let width = lines.iter().map(|line| TICK.width(line)).fold(0.0, f64::max);
            let size = (width, TICK_LINE * lines.len() as f64);
            let label = beside(point, size, &self.frame, drawn, &labels);
            canvas.rect((label.x - 2.0, label.y), (width + 4.0, label.height), (Paint::Paper, 0.85));
            for (i, line) in lines.iter().enumerate() {
                let y = label.y + TICK_LINE * (i as f64 + 0.5);
                canvas.text((label.x, y), line, TICK, Anchor::Left);
            }
            labels.push(label);
        }
    }

    /// Names of the series where their lines end or leave the plot.
    fn ends(&self) -> impl Iterator<Item = Side<'_>> {
        self.listed.iter().filter_map(|i| {
            let series = &self.chart.series[*i];
            let aside = self.aside(*i);
            let all = runs(series.points.iter().map(|p| self.place(*p).map(|(x, y)| (x + aside, y))));
            let line = all.iter().rev().find_map(|run| self.frame.cut_line(run).pop());
            let last = all.last().and_then(|run| run.last()).map(|point| self.frame.clamp(*point));
            let from = line.and_then(|line| line.last().copied()).or(last)?;
            Some(Side { from, lines: TICK.wrap(&series.label, SIDE), series: Some(series) })
        })
    }

    fn sides(&self, canvas: &mut Canvas, sides: &[Side<'_>]) {
        let frame = &self.frame;
        let wanted: Vec<(f64, f64)> =
            sides.iter().map(|side| (side.from.1, TICK_LINE * side.lines.len() as f64 + 1.0)).collect();
        for (side, y) in sides.iter().zip(apart(&wanted, frame.y - 8.0, frame.bottom() + 8.0)) {
            let (right, y) = (frame.right(), y + TICK_LINE * 0.5);
            let mut x = right + 6.0;
            if let Some(series) = side.series {
                let color = series.color % SERIES_COLORS;
                // Names are moved apart, so a thin line leads to each: straight, or from far away along the plot.
                let far = right - side.from.0 > 0.2 * frame.width;
                let bend = if far { (right, side.from.1) } else { side.from };
                canvas.path(&[side.from, bend, (right + 6.0, y)], 1.0, (Paint::Color(color), 0.5));
                let line = [(right + 6.0, y), (right + 19.0, y)];
                match series.kind {
                    Kind::Dashed => canvas.dashes(&line, Dash::Fine, (Paint::Color(color), 1.0)),
                    Kind::Markers => {}
                    _ => canvas.path(&line, 2.2, (Paint::Color(color), 1.0)),
                }
                if series.kind.marked() {
                    canvas.marker((right + 12.5, y), 4.0, color);
                }
                x = right + 22.0;
            }
            for (i, line) in side.lines.iter().enumerate() {
                canvas.text((x, y + TICK_LINE * i as f64), line, TICK, Anchor::Left);
            }
        }
    }
}

/// Maximum width of labels to the right of the plot.
pub(super) const SIDE: f64 = 104.0;

/// Vertical marks, each with a row for its label so that labels do not overlap, and the number of rows.
pub(super) fn tops(chart: &Chart, x: &Axis, frame: &Frame, most: f64) -> (Vec<Top>, usize) {
    let mut tops: Vec<Top> = Vec::new();
    for mark in &chart.marks {
        let Mark::Vertical { at, label } = mark else { continue };
        let Some(x) = across(x, frame, *at) else { continue };
        let lines = TICK.wrap(label, 220.0);
        let width = lines.iter().map(|line| TICK.width(line)).fold(0.0, f64::max);
        let fits = x - 3.0 + width <= most;
        tops.push(Top {
            x,
            lines,
            width,
            left: if fits { x - 3.0 } else { (x + 3.0 - width).max(0.0) },
            row: 0,
            fits,
        });
    }
    // A label begins at its line, and labels of lines further right are lower, so that lines run down beside the labels.
    // Labels that do not fit to the right of their line are laid out as the mirror image.
    let order = |a: &Top, b: &Top| {
        a.fits.cmp(&b.fits).then(if a.fits { a.x.total_cmp(&b.x) } else { b.x.total_cmp(&a.x) })
    };
    tops.sort_by(order);
    let mut rows = 0;
    for top in &mut tops {
        top.row = rows;
        rows += top.lines.len();
    }
    (tops, rows)
}

/// A labelled vertical line.
pub(super) struct Top {
    x: f64,
    pub(super) lines: Vec<String>,
    width: f64,
    left: f64,
    row: usize,
    /// Whether the label fits to the right of the line.
    fits: bool,
}

/// x coordinate of a vertical line at `value`, if it is within the frame.
fn across(x: &Axis, frame: &Frame, value: f64) -> Option<f64> {
    x.at(value).filter(|part| (0.0..=1.0).contains(part)).map(|part| frame.x + part * frame.width)
}
