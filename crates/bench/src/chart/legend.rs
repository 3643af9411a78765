//! The legend of a chart, in rows above the plot, where it covers nothing.
//!
//! Invariant: rows fit the width they were laid out for.

use super::canvas::{Anchor, Canvas, Font};

const FONT: Font = Font::new(13.0);
const ROW: f64 = 20.0;
/// Width of the sample before a name, then the space between them.
pub(super) const SAMPLE: f64 = 24.0;
const GAP: f64 = 6.0;
/// Space between a name and the next sample.
const BETWEEN: f64 = 20.0;

/// Names with their positions.
pub(super) struct Legend {
    /// The lines of a name, then x and y of its sample.
    entries: Vec<(Vec<String>, f64, f64)>,
    rows: usize,
}

impl Legend {
    /// A legend with as many rows as necessary.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>, width: f64) -> Self {
        let (mut entries, mut x, mut row): (Vec<_>, f64, usize) = (Vec::new(), 0.0, 0);
        for name in names {
            let lines = FONT.wrap(name, width - SAMPLE - GAP);
            let widest = lines.iter().map(|line| FONT.width(line)).fold(0.0, f64::max);
            if x > 0.0 && x + SAMPLE + GAP + widest > width {
                (x, row) = (0.0, row + 1);
            }
            entries.push((lines.clone(), x, row as f64 * ROW));
            row += lines.len().saturating_sub(1);
            x += SAMPLE + GAP + widest + BETWEEN;
        }
        let rows = if entries.is_empty() { 0 } else { row + 1 };
        Legend { entries, rows }
    }

    pub(super) fn height(&self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.rows as f64 * ROW + 4.0 }
    }

    /// Draws the legend; `sample` draws the sample of the entry with this index, from a position to the right.
    pub(super) fn draw(
        &self,
        canvas: &mut Canvas,
        (left, top): (f64, f64),
        mut sample: impl FnMut(&mut Canvas, usize, (f64, f64)),
    ) {
        for (i, (lines, x, y)) in self.entries.iter().enumerate() {
            let (x, y) = (left + x, top + y + ROW / 2.0);
            sample(canvas, i, (x, y));
            for (line, name) in lines.iter().enumerate() {
                let at = (x + SAMPLE + GAP, y + line as f64 * ROW);
                canvas.text(at, name, FONT, Anchor::Left);
            }
        }
    }
}
