//! Groups of stacked bars: the parts of a time, method by method.
//!
//! Invariant: as in [the module](super).

use super::axis::Axis;
use super::canvas::{Anchor, Canvas, Font, PALETTE, Paint, SERIES_COLORS, svg};
use super::legend::{Legend, SAMPLE};
use super::{HEADING, TICK, heading};
use crate::format;
use maud::Markup;

/// Width of the picture, in pixels.
const WIDTH: f64 = 600.0;
const BAR: f64 = 15.0;
const PITCH: f64 = 19.0;
const GROUP: Font = Font::new(13.0).bold();
const GROUP_LINE: f64 = 17.0;
/// Space between groups.
const BETWEEN: f64 = 12.0;

/// Groups of horizontal stacked bars.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// Above the picture; may be empty.
    pub title: String,
    /// The label of the lengths, with their unit.
    pub y_label: String,
    /// Names of the parts, in stacking order.
    pub parts: Vec<String>,
    /// Groups of bars, each with one length per part.
    pub groups: Vec<(String, Vec<(String, Vec<f64>)>)>,
}

impl Bars {
    /// The chart as an `<svg>` element.
    #[must_use]
    pub fn svg(&self) -> Markup {
        let layout = Layout::new(self);
        let height = layout.top + layout.body.max(40.0);
        svg((WIDTH, height), &self.described(), |canvas| layout.draw(canvas))
    }
}

/// The lengths of a bar, those without a position as 0.
fn lengths(bar: &[f64]) -> impl Iterator<Item = f64> {
    bar.iter().map(|v| if v.is_finite() { v.clamp(0.0, 1e200) } else { 0.0 })
}

/// The label at the end of a bar.
pub(super) fn total(bar: &[f64]) -> String {
    let some = bar.iter().any(|v| v.is_finite());
    if some { format::number(lengths(bar).sum()) } else { "no data".to_owned() }
}

fn part(index: usize) -> Paint {
    Paint::Color(SERIES_COLORS + index % (PALETTE.len() - SERIES_COLORS))
}

/// Bars with the places of their parts.
struct Layout<'a> {
    bars: &'a Bars,
    titles: Vec<String>,
    legend: Legend,
    y_lines: Vec<String>,
    /// The name of each group in lines.
    groups: Vec<Vec<String>>,
    /// Width of the names of the bars.
    names: f64,
    left: f64,
    right: f64,
    /// Upper end of the bars.
    top: f64,
    /// Height of all groups.
    body: f64,
    axis: Axis,
}

impl<'a> Layout<'a> {
    fn new(bars: &'a Bars) -> Self {
        let each = || bars.groups.iter().flat_map(|(_, bars)| bars);
        let most = each().map(|(_, bar)| lengths(bar).sum::<f64>()).fold(0.0, f64::max);
        let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
        let names = widest(&mut each().map(|(name, _)| TICK.width(name))).clamp(20.0, 0.3 * WIDTH);
        let numbers = widest(&mut each().map(|(_, bar)| TICK.width(&total(bar))));
        let legend = Legend::new(bars.parts.iter().map(String::as_str), WIDTH);
        let titles = HEADING.wrap(&bars.title, WIDTH);
        let groups: Vec<Vec<String>> = bars.groups.iter().map(|(name, _)| GROUP.wrap(name, WIDTH)).collect();
        let y_lines = TICK.wrap(&bars.y_label, WIDTH);
        let top = heading(&titles) + legend.height() + 17.0 * y_lines.len() as f64 + 24.0;
        let height =
            |(lines, bars): (usize, usize)| GROUP_LINE * lines as f64 + PITCH * bars as f64 + BETWEEN;
        let counts = bars.groups.iter().zip(&groups).map(|((_, bars), lines)| (lines.len(), bars.len()));
        let body = counts.map(height).sum();
        let axis = Axis::new([most].into_iter(), (most > 0.0).then_some((0.0, most)), false);
        let (left, right) = (names + 10.0, WIDTH - numbers - 12.0);
        Layout { bars, titles, legend, y_lines, groups, names, left, right, top, body, axis }
    }

    fn at(&self, length: f64) -> f64 {
        self.left + (self.right - self.left) * self.axis.at(length).unwrap_or(0.0).clamp(0.0, 1.0)
    }

    fn draw(&self, canvas: &mut Canvas) {
        let mut y = 0.0;
        super::draw_heading(canvas, &self.titles, &mut y);
        self.legend.draw(canvas, (0.0, y), |canvas, i, (x, y)| {
            canvas.rect((x + 4.0, y - 6.0), (SAMPLE - 8.0, 12.0), (part(i), 1.0));
        });
        y += self.legend.height();
        for line in &self.y_lines {
            canvas.text((self.left, y + 8.0), line, TICK.muted(), Anchor::Left);
            y += 17.0;
        }
        if self.bars.groups.iter().all(|(_, bars)| bars.is_empty()) {
            let middle = (WIDTH / 2.0, self.top + 10.0);
            return canvas.text(middle, "no data", TICK.muted(), Anchor::Middle);
        }
        self.grid(canvas);
        let mut y = self.top;
        for ((_, bars), lines) in self.bars.groups.iter().zip(&self.groups) {
            for line in lines {
                canvas.rect((0.0, y), (GROUP.width(line) + 4.0, GROUP_LINE), (Paint::Paper, 1.0));
                canvas.text((0.0, y + 0.5 * GROUP_LINE), line, GROUP, Anchor::Left);
                y += GROUP_LINE;
            }
            for (name, bar) in bars {
                self.bar(canvas, name, bar, y + PITCH / 2.0);
                y += PITCH;
            }
            y += BETWEEN;
        }
    }

    fn grid(&self, canvas: &mut Canvas) {
        let mut free = -f64::INFINITY;
        for (value, label) in self.axis.ticks(6) {
            let (x, half) = (self.at(value), TICK.width(&label) / 2.0);
            let line = [(x, self.top), (x, self.top + self.body - BETWEEN)];
            canvas.path(&line, 1.0, (Paint::Ink, 0.12));
            if x - half > free {
                canvas.text((x, self.top - 10.0), &label, TICK.muted(), Anchor::Middle);
                free = x + half + 8.0;
            }
        }
    }

    fn bar(&self, canvas: &mut Canvas, name: &str, bar: &[f64], middle: f64) {
        let name = super::shortened(TICK, name, self.names);
        canvas.text((self.names + 2.0, middle), &name, TICK, Anchor::Right);
        let mut done = 0.0;
        for (i, length) in lengths(bar).enumerate().take(self.bars.parts.len().max(1)) {
            let (from, to) = (self.at(done), self.at(done + length));
            if to > from {
                canvas.rect((from, middle - BAR / 2.0), (to - from, BAR), (part(i), 1.0));
            }
            done += length;
        }
        let end = (self.at(lengths(bar).sum()) + 6.0, middle);
        canvas.text(end, &total(bar), TICK, Anchor::Left);
    }
}
