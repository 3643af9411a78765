//! A report as one self-contained HTML file of text, pictures and tables, without scripts.
//!
//! Invariant: every text is escaped, so the file is well-formed XML too, whatever names it contains.

use super::chart::colors;
use super::format::escape;
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

/// A whole report.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The heading, and the title of the file.
    pub title: String,
    /// Paragraphs under the title.
    pub lead: Vec<String>,
    /// Where, when and how: names and values.
    pub facts: Vec<(String, String)>,
    /// The sections in order; their headings make the table of contents.
    pub sections: Vec<Section>,
}

/// A part of a [`Page`].
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Fragment identifier for links; characters other than letters and digits become hyphens.
    pub id: String,
    /// The heading.
    pub heading: String,
    /// Paragraphs.
    pub text: Vec<String>,
    /// Blocks under the paragraphs.
    pub blocks: Vec<Block>,
}

/// The content of a section.
#[derive(Clone, Debug)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A list of short sentences.
    List(Vec<String>),
    /// Preformatted code.
    Code(String),
    /// A picture.
    Figure {
        /// An `<svg>` element. It is trusted and not escaped.
        svg: String,
        /// Under the picture; may be empty.
        caption: String,
    },
    /// Pictures with their captions, side by side where there is room.
    Figures(Vec<(String, String)>),
    /// A table.
    Table(Table),
    /// Collapsed content, shown on demand and on paper.
    Details {
        /// The text that is always shown.
        summary: String,
        /// The collapsed content.
        blocks: Vec<Block>,
    },
}

/// Rows and columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Above the table.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// A row with a single cell is the heading of the rows that follow.
    pub rows: Vec<Vec<Cell>>,
}

/// How a cell is highlighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Nothing special.
    #[default]
    Plain,
    /// The best of its row.
    Best,
    /// Worse than the cell it is compared with.
    Worse,
    /// Less important.
    Muted,
}

/// One field of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Numbers are right-aligned; text after a line break is small.
    pub text: String,
    /// The highlighting.
    pub class: Class,
}

impl Cell {
    /// A cell with highlighting.
    #[must_use]
    pub fn new(text: impl Into<String>, class: Class) -> Self {
        Cell { text: text.into(), class }
    }

    /// Whether the text is a number, perhaps with a unit, and not a name that begins with a digit.
    fn numeric(&self) -> bool {
        let text = self.text.lines().next().unwrap_or("");
        let number = text.trim_start_matches(['−', '-', '<', '>', '≥', '≤', '~', '≈', '×']);
        let begins = number.starts_with(|c: char| c.is_ascii_digit() || c == '∞') || text == "–";
        begins && text.chars().filter(|c| c.is_alphabetic()).count() <= 6
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(text, Class::Plain)
    }
}

impl Page {
    /// The HTML file.
    #[must_use]
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let dark: Vec<String> = colors().map(|(name, _, dark)| format!("{name}:{dark};")).collect();
        let style = STYLE.replace("%DARK%", &dark.concat());
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/>\n<title>{title}</title>\n\
             <style>\n{style}</style>\n</head>\n<body>\n<div class=\"page\">\n<header>\n<h1>{title}</h1>\n"
        );
        paragraphs(&mut html, &self.lead);
        html += "</header>\n";
        if !self.facts.is_empty() {
            html += "<dl class=\"facts\">\n";
            for (name, value) in &self.facts {
                put(
                    &mut html,
                    format_args!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)),
                );
            }
            html += "</dl>\n";
        }
        let ids = self.ids();
        if self.sections.len() > 1 {
            html += "<nav aria-label=\"Contents\"><ul>\n";
            for (section, id) in self.sections.iter().zip(&ids) {
                let heading = escape(&section.heading);
                put(&mut html, format_args!("<li><a href=\"#{id}\">{heading}</a></li>\n"));
            }
            html += "</ul></nav>\n";
        }
        html += "<main>\n";
        for (section, id) in self.sections.iter().zip(&ids) {
            put(&mut html, format_args!("<section id=\"{id}\">\n<h2>{}</h2>\n", escape(&section.heading)));
            paragraphs(&mut html, &section.text);
            blocks(&mut html, &section.blocks);
            html += "</section>\n";
        }
        html += "</main>\n</div>\n</body>\n</html>\n";
        html
    }

    /// Fragment identifiers of the sections, all different.
    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for section in &self.sections {
            let slug: String = section
                .id
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                .collect();
            let slug = if slug.is_empty() { "section".to_owned() } else { slug };
            let numbered = (2..).map(|i| format!("{slug}-{i}"));
            let free = std::iter::once(slug.clone()).chain(numbered).find(|id| !ids.contains(id));
            ids.push(free.expect("there are numbers enough"));
        }
        ids
    }
}

/// Appends formatted text; writing to a string cannot fail.
fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a string takes everything");
}

fn paragraphs(html: &mut String, paragraphs: &[String]) {
    for text in paragraphs {
        put(html, format_args!("<p>{}</p>\n", escape(text)));
    }
}

fn blocks(html: &mut String, all: &[Block]) {
    for block in all {
        match block {
            Block::Text(text) => put(html, format_args!("<p>{}</p>\n", escape(text))),
            Block::List(items) => {
                html.push_str("<ul>\n");
                for item in items {
                    put(html, format_args!("<li>{}</li>\n", escape(item)));
                }
                html.push_str("</ul>\n");
            }
            Block::Code(code) => put(html, format_args!("<pre>{}</pre>\n", escape(code))),
            Block::Figure { svg, caption } => figure(html, svg, caption),
            Block::Figures(figures) => {
                html.push_str("<div class=\"grid\">\n");
                for (svg, caption) in figures {
                    figure(html, svg, caption);
                }
                html.push_str("</div>\n");
            }
            Block::Table(table) => table.write(html),
            Block::Details { summary, blocks: inner } => {
                put(html, format_args!("<details>\n<summary>{}</summary>\n", escape(summary)));
                blocks(html, inner);
                html.push_str("</details>\n");
            }
        }
    }
}

fn figure(html: &mut String, svg: &str, caption: &str) {
    put(html, format_args!("<figure>\n{svg}\n"));
    if !caption.is_empty() {
        put(html, format_args!("<figcaption>{}</figcaption>\n", escape(caption)));
    }
    html.push_str("</figure>\n");
}

impl Table {
    fn write(&self, html: &mut String) {
        let columns = self.rows.iter().map(Vec::len).fold(self.head.len(), usize::max);
        let group = |row: &[Cell]| row.len() == 1 && columns > 1;
        // A column's name is aligned as its numbers are.
        // The first column names the rows, even if a name begins with a digit.
        let numeric = |column: usize| {
            if column == 0 {
                return false;
            }
            let cells = self.rows.iter().filter(|row| !group(row)).filter_map(|row| row.get(column));
            let mut cells = cells.filter(|cell| !cell.text.is_empty()).peekable();
            cells.peek().is_some() && cells.all(Cell::numeric)
        };
        // The caption stays outside the table: inside it would be as wide as the table and would scroll with it.
        if !self.caption.is_empty() {
            put(html, format_args!("<p class=\"caption\">{}</p>\n", escape(&self.caption)));
        }
        html.push_str("<div class=\"wide\"><table>\n");
        html.push_str("<thead><tr>");
        for (column, name) in self.head.iter().enumerate() {
            let class = if numeric(column) { " class=\"n\"" } else { "" };
            put(html, format_args!("<th scope=\"col\"{class}>{}</th>", escape(name)));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            if group(row) {
                let text = escape(&row[0].text);
                put(html, format_args!("<tr class=\"group\"><th colspan=\"{columns}\">{text}</th></tr>\n"));
                continue;
            }
            html.push_str("<tr>");
            for (column, cell) in row.iter().enumerate() {
                let place = if column > 0 && cell.numeric() { "n" } else { "t" };
                let class = match cell.class {
                    Class::Plain => "",
                    Class::Best => " best",
                    Class::Worse => " worse",
                    Class::Muted => " muted",
                };
                let (text, small) = cell.text.split_once('\n').unwrap_or((&cell.text, ""));
                put(html, format_args!("<td class=\"{place}{class}\">{}", escape(text)));
                if !small.is_empty() {
                    put(html, format_args!("<small>{}</small>", escape(small)));
                }
                html.push_str("</td>");
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::malformed;

    const HOSTILE: &str = "<b>&\"'</style></td>\u{1}";

    fn every_block(text: &str) -> Vec<Block> {
        let text = text.to_owned();
        let rows =
            vec![vec![Cell::from(&*text)], vec![Cell::from(format!("1{text}\n{text}")), Cell::from("x")]];
        vec![
            Block::Text(text.clone()),
            Block::List(vec![text.clone()]),
            Block::Code(text.clone()),
            Block::Figure { svg: "<svg/>".to_owned(), caption: text.clone() },
            Block::Figures(vec![("<svg/>".to_owned(), text.clone())]),
            Block::Table(Table { caption: text.clone(), head: vec![text.clone(), text.clone()], rows }),
        ]
    }

    fn page(text: &str) -> Page {
        let mut blocks = every_block(text);
        blocks.push(Block::Details { summary: text.to_owned(), blocks: every_block(text) });
        let section =
            Section { id: text.to_owned(), heading: text.to_owned(), text: vec![text.to_owned()], blocks };
        Page {
            title: text.to_owned(),
            lead: vec![text.to_owned()],
            facts: vec![(text.to_owned(), text.to_owned())],
            sections: vec![section.clone(), section],
        }
    }

    #[test]
    fn everything_is_escaped() {
        let html = page(HOSTILE).html();
        assert_eq!(malformed(&html), None);
        assert!(!html.contains("<b>") && html.matches("</style>").count() == 1);
        // Twice in the head, once in the lead, twice in the facts; in each section twice for the heading (once in the
        // contents), once in a paragraph, and in two sets of blocks with a summary.
        assert_eq!(html.matches("&lt;b&gt;").count(), 2 + 1 + 2 + 2 * (2 + 1 + 2 * 11 + 1));
        // Negative control: trusted text is not escaped.
        let broken = Block::Figure { svg: HOSTILE.to_owned(), caption: String::new() };
        let mut page = page("a");
        page.sections[0].blocks.push(broken);
        assert!(malformed(&page.html()).is_some());
    }

    #[test]
    fn nothing_is_loaded_or_run() {
        let html = page("a").html();
        for outside in ["src=", "http://", "https://", "<script", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html, page("a").html());
    }

    #[test]
    fn sections_have_links_of_their_own() {
        let html = page("Where & when").html();
        for id in ["where---when", "where---when-2"] {
            assert!(
                html.contains(&format!("href=\"#{id}\"")) && html.contains(&format!("id=\"{id}\"")),
                "{id}"
            );
        }
        assert_eq!(malformed(&Page::default().html()), None);
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let cells = ["2 of 6", "1.5 ms", "1 worker late"].map(Cell::from);
        let rows = vec![cells.into_iter().chain([Cell::new("−2", Class::Best)]).collect()];
        let head = ["a", "b", "c", "d"].map(str::to_owned).into();
        let mut html = String::new();
        Table { head, rows, ..Table::default() }.write(&mut html);
        assert!(
            html.contains("<td class=\"t\">2 of 6") && html.contains("<td class=\"n best\">−2"),
            "{html}"
        );
        assert!(
            html.contains("<th scope=\"col\">a") && html.contains("<th scope=\"col\" class=\"n\">b"),
            "{html}"
        );
    }
}
