//! Coloured cells over two lists: which of several is the best where.
//!
//! Invariant: as in [the module](super).

use super::canvas::{Anchor, Canvas, Described, Font, Paint, SERIES_COLORS, svg};
use super::legend::{Legend, SAMPLE};
use super::{HEADING, TICK, TICK_LINE, heading};
use maud::Markup;

/// Width of the picture, in pixels.
const WIDTH: f64 = 1000.0;
const ROW: f64 = 44.0;
const TEXT: Font = Font::new(13.0).bold();
const SMALL: Font = Font::new(12.0);

/// A field of a [`Grid`].
#[derive(Clone, Debug, Default)]
pub struct GridCell {
    /// Index into [`Grid::names`]; `None` leaves the field empty.
    pub name: Option<usize>,
    /// Opacity of the colour, 0 to 1.
    pub strength: f64,
    /// The first line.
    pub text: String,
    /// The second line.
    pub small: String,
}

/// Cells in rows and columns, each in the colour of a name.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// Above the picture; may be empty.
    pub title: String,
    /// Label of the columns, with its unit.
    pub x_label: String,
    /// Label of the rows, with its unit.
    pub y_label: String,
    /// Names in the legend, with an index into the palette of series.
    pub names: Vec<(String, usize)>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, from the top.
    pub rows: Vec<String>,
    /// The cells, row by row.
    pub cells: Vec<GridCell>,
}

impl Grid {
    /// The picture as an `<svg>` element.
    #[must_use]
    pub fn svg(&self) -> Markup {
        let titles = HEADING.wrap(&self.title, WIDTH);
        let y_lines = TICK.wrap(&self.y_label, WIDTH);
        let x_lines = TICK.wrap(&self.x_label, WIDTH);
        let legend = Legend::new(self.names.iter().map(|(name, _)| name.as_str()), WIDTH);
        let top = heading(&titles) + legend.height() + TICK_LINE * y_lines.len() as f64 + 8.0;
        let bottom = top + ROW * self.rows.len() as f64;
        let height = bottom + TICK_LINE * (1 + x_lines.len()) as f64 + 14.0;
        svg((WIDTH, height), &self.described(), |canvas| {
            let mut y = 0.0;
            super::draw_heading(canvas, &titles, &mut y);
            legend.draw(canvas, (0.0, y), |canvas, i, (x, y)| {
                canvas.rect((x + 4.0, y - 6.0), (SAMPLE - 8.0, 12.0), (self.paint(i), 0.6));
            });
            y += legend.height();
            for line in &y_lines {
                canvas.text((0.0, y + TICK_LINE / 2.0), line, TICK.muted(), Anchor::Left);
                y += TICK_LINE;
            }
            self.draw(canvas, top);
            for (i, line) in x_lines.iter().enumerate() {
                let at = bottom + TICK_LINE * (1.5 + i as f64) + 6.0;
                canvas.text((self.left(), at), line, TICK.muted(), Anchor::Left);
            }
        })
    }

    fn paint(&self, name: usize) -> Paint {
        Paint::Color(self.names.get(name).map_or(0, |(_, color)| color % SERIES_COLORS))
    }

    /// Where the cells begin.
    fn left(&self) -> f64 {
        self.rows.iter().map(|row| TICK.width(row)).fold(20.0, f64::max).min(0.3 * WIDTH) + 10.0
    }

    fn draw(&self, canvas: &mut Canvas, top: f64) {
        let (left, count) = (self.left(), self.columns.len().max(1));
        let width = (WIDTH - left) / count as f64;
        for (row, name) in self.rows.iter().enumerate() {
            let y = top + ROW * row as f64;
            canvas.text((left - 8.0, y + ROW / 2.0), name, TICK, Anchor::Right);
            for (column, cell) in self.cells.iter().skip(row * count).take(count).enumerate() {
                let x = left + width * column as f64;
                if let Some(name) = cell.name {
                    let strength = cell.strength.clamp(0.1, 1.0);
                    canvas.rect((x + 1.0, y + 1.0), (width - 2.0, ROW - 2.0), (self.paint(name), strength));
                }
                let middle = x + width / 2.0;
                let text = super::shortened(TEXT, &cell.text, width - 4.0);
                let small = super::shortened(SMALL, &cell.small, width - 4.0);
                canvas.text((middle, y + ROW / 2.0 - 8.0), &text, TEXT, Anchor::Middle);
                canvas.text((middle, y + ROW / 2.0 + 9.0), &small, SMALL, Anchor::Middle);
            }
        }
        let below = top + ROW * self.rows.len() as f64 + TICK_LINE / 2.0 + 4.0;
        for (column, name) in self.columns.iter().enumerate() {
            canvas.text((left + width * (column as f64 + 0.5), below), name, TICK, Anchor::Middle);
        }
    }

    fn described(&self) -> Described {
        let count = self.columns.len().max(1);
        let row = |(index, name): (usize, &String)| {
            let cells = self.cells.iter().skip(index * count).take(count).zip(&self.columns);
            let cells: Vec<String> =
                cells.map(|(cell, column)| format!("{} at {column}", cell.text)).collect();
            format!("{name}: {}", cells.join(", "))
        };
        let rows: Vec<String> = self.rows.iter().enumerate().map(row).collect();
        let title = if self.title.is_empty() { "A map" } else { &self.title };
        let axes = format!("Across: {}. Down: {}.", self.x_label, self.y_label);
        Described { title: title.to_owned(), description: format!("{axes} {}.", rows.join(". ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_drawn_in_the_colour_of_its_name() {
        let cell = |name, text: &str| GridCell {
            name,
            strength: 0.5,
            text: text.to_owned(),
            small: "×2".to_owned(),
        };
        let grid = Grid {
            title: "Best <where>".to_owned(),
            names: vec![("coded".to_owned(), 4), ("whole".to_owned(), 2)],
            columns: vec!["1".to_owned(), "10".to_owned()],
            rows: vec!["0.1".to_owned(), "1".to_owned()],
            cells: vec![
                cell(Some(0), "coded"),
                cell(Some(1), "whole"),
                cell(Some(1), "whole"),
                cell(None, "–"),
            ],
            ..Grid::default()
        };
        let text = grid.svg().into_string();
        // One rectangle a cell with a name, one a name in the legend.
        assert_eq!(text.matches("<rect").count(), 5, "{text}");
        assert_eq!(text.matches("var(--c4").count(), 2);
        assert!(text.contains("Best &lt;where&gt;") && text.contains("0.1: coded at 1, whole at 10"));
        assert!(Grid::default().svg().into_string().contains("<svg"));
    }
}
