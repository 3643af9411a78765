//! A report as one self-contained HTML file, without scripts: the answer and its picture first, then text and tables.
//!
//! Invariant: the templates escape every text, so tags match whatever names the report contains.

use super::chart::{Chart, Size, colors};
use super::format::allowed;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");

/// A whole report.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The heading, and the title of the file.
    pub title: String,
    /// One sentence: what the report found.
    pub answer: String,
    /// The picture that shows the answer: a chart, or up to four side by side.
    pub picture: Vec<Chart>,
    /// Under the picture; may be empty.
    pub caption: String,
    /// Paragraphs after the picture: what the report is about.
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
        /// An `<svg>` element.
        svg: Markup,
        /// Under the picture; may be empty.
        caption: String,
    },
    /// Pictures with their captions, side by side where there is room.
    Figures(Vec<(Markup, String)>),
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
        let dark: Vec<String> = colors().map(|(name, _, dark)| format!("{name}:{dark};")).collect();
        let style = STYLE.replace("%DARK%", &dark.concat());
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    title { (self.title) }
                    // The style sheet is a part of this program and contains no tags.
                    style { (PreEscaped(style)) }
                }
                body { div class="page" { (self.first_screen()) (self.rest()) } }
            }
        };
        let mut text = page.into_string();
        // What no HTML or XML file may contain, escaped or not.
        text.retain(allowed);
        text
    }

    fn first_screen(&self) -> Markup {
        let count = self.picture.len();
        let wide = match count {
            0 | 1 => Size { width: 1000.0, plot_height: 370.0 },
            2 => Size { width: 560.0, plot_height: 330.0 },
            _ => Size { width: 560.0, plot_height: 155.0 },
        };
        // Letters of a wide picture would be too small to read where it is shrunk.
        let narrow = Size { width: 350.0, plot_height: 220.0 };
        html! {
            header {
                h1 { (self.title) }
                @if !self.answer.is_empty() { p class="answer" { (self.answer) } }
            }
            @if count > 0 {
                figure class="picture" {
                    @for (class, size) in [("wide-picture", wide), ("narrow-picture", narrow)] {
                        div class=(class) {
                            @for chart in &self.picture { (chart.svg_of(size)) }
                        }
                    }
                    @if !self.caption.is_empty() { figcaption { (self.caption) } }
                }
            }
        }
    }

    fn rest(&self) -> Markup {
        let ids = self.ids();
        html! {
            @for text in &self.lead { p { (text) } }
            @if self.sections.len() > 1 {
                nav aria-label="Contents" {
                    ul {
                        @for (section, id) in self.sections.iter().zip(&ids) {
                            li { a href={ "#" (id) } { (section.heading) } }
                        }
                    }
                }
            }
            main {
                @for (section, id) in self.sections.iter().zip(&ids) {
                    section id=(id) {
                        h2 { (section.heading) }
                        @for text in &section.text { p { (text) } }
                        @for block in &section.blocks { (block.markup()) }
                    }
                }
            }
            @if !self.facts.is_empty() {
                dl class="facts" {
                    @for (name, value) in &self.facts { div { dt { (name) } dd { (value) } } }
                }
            }
        }
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

impl Block {
    fn markup(&self) -> Markup {
        html! {
            @match self {
                Block::Text(text) => p { (text) },
                Block::List(items) => ul { @for item in items { li { (item) } } },
                Block::Code(code) => pre { (code) },
                Block::Figure { svg, caption } => (figure(svg, caption)),
                Block::Figures(figures) => div class="grid" {
                    @for (svg, caption) in figures { (figure(svg, caption)) }
                },
                Block::Table(table) => (table.markup()),
                Block::Details { summary, blocks } => details {
                    summary { (summary) }
                    @for block in blocks { (block.markup()) }
                },
            }
        }
    }
}

fn figure(svg: &Markup, caption: &str) -> Markup {
    html! {
        figure {
            (svg)
            @if !caption.is_empty() { figcaption { (caption) } }
        }
    }
}

impl Table {
    fn markup(&self) -> Markup {
        let columns = self.columns();
        html! {
            // The caption stays outside the table: inside it would be as wide as the table and would scroll with it.
            @if !self.caption.is_empty() { p class="caption" { (self.caption) } }
            div class="wide" {
                table {
                    thead {
                        tr {
                            @for (column, name) in self.head.iter().enumerate() {
                                th scope="col" class=[self.numeric(column).then_some("n")] { (name) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            @if self.is_heading(row) {
                                tr class="group" { th colspan=(columns) { (row[0].text) } }
                            } @else {
                                tr { @for (column, cell) in row.iter().enumerate() { (cell.markup(column)) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn columns(&self) -> usize {
        self.rows.iter().map(Vec::len).fold(self.head.len(), usize::max)
    }

    /// Whether a row is the heading of the rows that follow.
    fn is_heading(&self, row: &[Cell]) -> bool {
        row.len() == 1 && self.columns() > 1
    }

    /// Whether a column contains numbers only; its name is then aligned as they are.
    fn numeric(&self, column: usize) -> bool {
        // The first column names the rows, even if a name begins with a digit.
        if column == 0 {
            return false;
        }
        let cells = self.rows.iter().filter(|row| !self.is_heading(row)).filter_map(|row| row.get(column));
        let mut cells = cells.filter(|cell| !cell.text.is_empty()).peekable();
        cells.peek().is_some() && cells.all(Cell::numeric)
    }
}

impl Cell {
    fn markup(&self, column: usize) -> Markup {
        let place = if column > 0 && self.numeric() { "n" } else { "t" };
        let class = match self.class {
            Class::Plain => "",
            Class::Best => " best",
            Class::Worse => " worse",
            Class::Muted => " muted",
        };
        let (text, small) = self.text.split_once('\n').unwrap_or((&self.text, ""));
        html! {
            td class={ (place) (class) } { (text) @if !small.is_empty() { small { (small) } } }
        }
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
            Block::Figure { svg: html! { svg {} }, caption: text.clone() },
            Block::Figures(vec![(html! { svg {} }, text.clone())]),
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
            answer: text.to_owned(),
            picture: vec![Chart { title: text.to_owned(), ..Chart::default() }],
            caption: text.to_owned(),
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
        // Twice in the title, once in the answer, twice in each of two pictures (its title, and the heading drawn), in the
        // caption and in the lead, twice in the facts; in each section twice for the heading (once in the contents),
        // once in a paragraph, and in two sets of blocks with a summary.
        assert_eq!(html.matches("&lt;b&gt;").count(), 2 + 1 + 2 * 2 + 1 + 1 + 2 + 2 * (2 + 1 + 2 * 11 + 1));
        assert!(!html.contains('\u{1}'));
        // Negative control: markup is not escaped.
        let broken = Block::Figure { svg: PreEscaped(HOSTILE.to_owned()), caption: String::new() };
        let mut page = page("a");
        page.sections[0].blocks.push(broken);
        assert!(malformed(&page.html()).is_some());
    }

    #[test]
    fn nothing_is_loaded_or_run() {
        let html = page("a").html().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for outside in ["src=", "http://", "https://", "<script", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(page("a").html(), page("a").html());
    }

    #[test]
    fn the_answer_and_its_picture_come_first() {
        let html = Page {
            answer: "Yes.".to_owned(),
            picture: vec![Chart::default()],
            lead: vec!["About.".to_owned()],
            ..page("a")
        }
        .html();
        let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("{text}"));
        let order = ["<h1>", "Yes.", "<svg", "About.", "<nav", "<section", "<table", "<dl"].map(at);
        assert!(order.is_sorted(), "{order:?}");
        // One for wide pages and one for narrow ones; without a picture there is no empty frame.
        assert_eq!(html.matches("role=\"img\"").count(), 2);
        let without = Page { picture: Vec::new(), ..page("a") }.html();
        assert!(!without.contains("class=\"picture\"") && !without.contains("role=\"img\""));
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
        let html = Table { head, rows, ..Table::default() }.markup().into_string();
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
