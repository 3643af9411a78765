//! Groups of stacked bars: the parts of a time, method by method.
//!
//! Invariant: as in [the module](super).

use super::axis::Axis;
use super::canvas::{Anchor, Canvas, Font, PALETTE, Paint, SERIES_COLORS, svg};
use super::legend::{Legend, SAMPLE};
use super::{HEADING, TICK, WIDTH, heading};
use crate::format;

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
    pub fn svg(&self) -> String {
        let lengths = |bar: &'_ [f64]| -> Vec<f64> {
            bar.iter().map(|v| if v.is_finite() { v.clamp(0.0, 1e200) } else { 0.0 }).collect()
        };
        let bars = || self.groups.iter().flat_map(|(_, bars)| bars);
        let total = |bar: &[f64]| lengths(bar).iter().sum::<f64>();
        let most = bars().map(|(_, bar)| total(bar)).fold(0.0, f64::max);
        let label = |bar: &[f64]| {
            let some = bar.iter().any(|v| v.is_finite());
            if some { format::number(total(bar)) } else { "no data".to_owned() }
        };
        let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
        let names = widest(&mut bars().map(|(name, _)| TICK.width(name))).clamp(20.0, 0.3 * WIDTH);
        let numbers = widest(&mut bars().map(|(_, bar)| TICK.width(&label(bar))));
        let (left, right) = (names + 10.0, WIDTH - numbers - 12.0);
        let legend = Legend::new(self.parts.iter().map(String::as_str), WIDTH);
        let titles = HEADING.wrap(&self.title, WIDTH);
        let group_lines: Vec<Vec<String>> =
            self.groups.iter().map(|(name, _)| GROUP.wrap(name, WIDTH)).collect();
        let y_lines = TICK.wrap(&self.y_label, WIDTH);
        let top = heading(&titles) + legend.height() + 17.0 * y_lines.len() as f64 + 24.0;
        let body: f64 = self
            .groups
            .iter()
            .zip(&group_lines)
            .map(|((_, bars), lines)| GROUP_LINE * lines.len() as f64 + PITCH * bars.len() as f64 + BETWEEN)
            .sum();
        let axis = Axis::new([most].into_iter(), (most > 0.0).then_some((0.0, most)), false);
        let at = |length: f64| left + (right - left) * axis.at(length).unwrap_or(0.0).clamp(0.0, 1.0);
        let part = |i: usize| Paint::Color(SERIES_COLORS + i % (PALETTE.len() - SERIES_COLORS));

        svg((WIDTH, top + body.max(40.0)), &self.title, |canvas| {
            let mut y = 0.0;
            super::draw_heading(canvas, &titles, &mut y);
            legend.draw(canvas, (0.0, y), |canvas, i, (x, y)| {
                canvas.rect((x + 4.0, y - 6.0), (SAMPLE - 8.0, 12.0), (part(i), 1.0));
            });
            y += legend.height();
            for line in &y_lines {
                canvas.text((left, y + 8.0), line, TICK.muted(), Anchor::Left);
                y += 17.0;
            }
            if bars().next().is_none() {
                return canvas.text((WIDTH / 2.0, top + 10.0), "no data", TICK.muted(), Anchor::Middle);
            }
            let mut free = -f64::INFINITY;
            for (value, label) in axis.ticks(6) {
                let (x, half) = (at(value), TICK.width(&label) / 2.0);
                canvas.path(&[(x, top), (x, top + body - BETWEEN)], 1.0, (Paint::Ink, 0.12));
                if x - half > free {
                    canvas.text((x, top - 10.0), &label, TICK.muted(), Anchor::Middle);
                    free = x + half + 8.0;
                }
            }
            y = top;
            for ((_, bars), lines) in self.groups.iter().zip(&group_lines) {
                for line in lines {
                    canvas.rect((0.0, y), (GROUP.width(line) + 4.0, GROUP_LINE), (Paint::Paper, 1.0));
                    canvas.text((0.0, y + 0.5 * GROUP_LINE), line, GROUP, Anchor::Left);
                    y += GROUP_LINE;
                }
                for (name, bar) in bars {
                    let middle = y + PITCH / 2.0;
                    self.bar(canvas, (name, names), &lengths(bar), middle, &at, &part);
                    let end = at(total(bar)) + 6.0;
                    canvas.text((end, middle), &label(bar), TICK, Anchor::Left);
                    y += PITCH;
                }
                y += BETWEEN;
            }
        })
    }

    fn bar(
        &self,
        canvas: &mut Canvas<'_>,
        (name, room): (&str, f64),
        lengths: &[f64],
        middle: f64,
        at: &dyn Fn(f64) -> f64,
        part: &dyn Fn(usize) -> Paint,
    ) {
        canvas.text((room + 2.0, middle), &super::shortened(TICK, name, room), TICK, Anchor::Right);
        let mut done = 0.0;
        for (i, length) in lengths.iter().enumerate().take(self.parts.len().max(1)) {
            let (from, to) = (at(done), at(done + length));
            if to > from {
                canvas.rect((from, middle - BAR / 2.0), (to - from, BAR), (part(i), 1.0));
            }
            done += length;
        }
    }
}
