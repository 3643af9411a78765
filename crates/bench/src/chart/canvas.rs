//! Drawing primitives of charts: lines, shapes and text as SVG elements, in view box units.
//!
//! Colours are CSS variables (`--c0` and so on) that the page may redefine, so that one picture serves light pages, dark
//! pages and paper.
//!
//! Invariant: drawing cannot fail, whatever the coordinates.

use crate::format;
use maud::{Markup, html};
use std::fmt::Write as _;

/// Colours that colour-blind readers can tell apart, for light and for dark pages: a grey and those of Okabe and Ito for
/// series, then some of Paul Tol's for the parts of bars.
pub(super) const PALETTE: [(&str, &str); 13] = [
    ("#5F6670", "#AEB6C2"),
    ("#009E73", "#2BC79B"),
    ("#56B4E9", "#6CC1F2"),
    ("#CC79A7", "#E29BC4"),
    ("#D55E00", "#FF8A3D"),
    ("#0072B2", "#4DA3E0"),
    ("#E69F00", "#F2B632"),
    ("#8A7A00", "#D9CC45"),
    ("#443A9C", "#8F86E8"),
    ("#B9BEC7", "#6A7382"),
    ("#999933", "#C3C357"),
    ("#882255", "#D06A9C"),
    ("#44AA99", "#6BD0C0"),
];
/// The first colours of [`PALETTE`] are for series, the others for parts of bars.
pub(super) const SERIES_COLORS: usize = 8;

/// The colour of a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Paint {
    /// The colour of text.
    Ink,
    /// The colour behind everything.
    Paper,
    /// An index into [`PALETTE`].
    Color(usize),
}

impl Paint {
    /// The CSS colour.
    fn css(self) -> String {
        match self {
            Paint::Ink => "currentColor".to_owned(),
            Paint::Paper => "var(--paper,#FFFFFF)".to_owned(),
            Paint::Color(index) => {
                let index = index % PALETTE.len();
                format!("var(--c{index},{})", PALETTE[index].0)
            }
        }
    }
}

/// The style of a dashed line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dash {
    /// For a series.
    Bold,
    /// For a reference.
    Fine,
}

/// The alignment of a line of text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Left,
    Middle,
    Right,
}

/// A picture that is being drawn.
#[derive(Default)]
pub(super) struct Canvas {
    elements: Vec<Markup>,
}

impl Canvas {
    /// A line through points.
    pub(super) fn path(&mut self, points: &[(f64, f64)], width: f64, paint: (Paint, f64)) {
        self.line(points, width, None, paint);
    }

    /// A dashed line through points.
    pub(super) fn dashes(&mut self, points: &[(f64, f64)], dash: Dash, paint: (Paint, f64)) {
        match dash {
            Dash::Bold => self.line(points, 2.2, Some("7 4"), paint),
            Dash::Fine => self.line(points, 1.2, Some("3 3"), paint),
        }
    }

    fn line(
        &mut self,
        points: &[(f64, f64)],
        width: f64,
        dashes: Option<&str>,
        (paint, opacity): (Paint, f64),
    ) {
        if points.len() > 1 {
            self.elements.push(html! {
                polyline points=(list(points)) fill="none" stroke=(paint.css()) stroke-width=(width)
                    stroke-dasharray=[dashes] opacity=[partial(opacity)] {}
            });
        }
    }

    /// A filled shape.
    pub(super) fn area(&mut self, corners: &[(f64, f64)], (paint, opacity): (Paint, f64)) {
        if corners.len() > 2 {
            self.elements.push(html! {
                polygon points=(list(corners)) fill=(paint.css()) opacity=[partial(opacity)] {}
            });
        }
    }

    /// A filled rectangle.
    pub(super) fn rect(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        (paint, opacity): (Paint, f64),
    ) {
        let (width, height) = (unit(width).max(0.0), unit(height).max(0.0));
        self.elements.push(html! {
            rect x=(unit(x)) y=(unit(y)) width=(width) height=(height) fill=(paint.css())
                opacity=[partial(opacity)] {}
        });
    }

    /// A filled shape centred on a point, different for each colour, so that series can be told apart without colour.
    pub(super) fn marker(&mut self, (x, y): (f64, f64), size: f64, color: usize) {
        let paint = Paint::Color(color);
        let corner = |(dx, dy): (f64, f64)| (x + dx * size, y + dy * size);
        let shape: &[(f64, f64)] = match color % SERIES_COLORS {
            1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            2 => &[(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
            3 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            5 => &[(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
            6 => &[(-1.3, -0.7), (1.3, -0.7), (1.3, 0.7), (-1.3, 0.7)],
            7 => &[(-0.7, -1.3), (0.7, -1.3), (0.7, 1.3), (-0.7, 1.3)],
            _ => {
                return self.elements.push(html! {
                    circle cx=(unit(x)) cy=(unit(y)) r=(unit(size)) fill=(paint.css()) {}
                });
            }
        };
        self.area(&shape.iter().map(|d| corner(*d)).collect::<Vec<_>>(), (paint, 1.0));
    }

    /// A circle's outline.
    pub(super) fn ring(&mut self, (x, y): (f64, f64), radius: f64, width: f64, paint: Paint) {
        self.elements.push(html! {
            circle cx=(unit(x)) cy=(unit(y)) r=(unit(radius)) fill="none" stroke=(paint.css())
                stroke-width=(width) {}
        });
    }

    /// A line of text, vertically centred on `at`.
    pub(super) fn text(&mut self, (x, y): (f64, f64), text: &str, font: Font, anchor: Anchor) {
        let clean: String = text.chars().filter(|c| format::allowed(*c) && !c.is_control()).collect();
        let anchor = match anchor {
            Anchor::Left => None,
            Anchor::Middle => Some("middle"),
            Anchor::Right => Some("end"),
        };
        if !clean.is_empty() {
            self.elements.push(html! {
                text x=(unit(x)) y=(unit(y)) dy="0.35em" text-anchor=[anchor] font-size=(font.size)
                    font-weight=[font.bold.then_some("bold")] fill=(font.paint.css())
                    opacity=[partial(font.opacity)] { (clean) }
            });
        }
    }
}

/// The style of text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Font {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) paint: Paint,
    pub(super) opacity: f64,
}

impl Font {
    /// A regular font of this size in the colour of text.
    pub(super) const fn new(size: f64) -> Self {
        Font { size, bold: false, paint: Paint::Ink, opacity: 1.0 }
    }

    pub(super) const fn bold(self) -> Self {
        Font { bold: true, ..self }
    }

    pub(super) const fn muted(self) -> Self {
        Font { opacity: 0.72, ..self }
    }

    fn em(self) -> f64 {
        self.size * if self.bold { 1.07 } else { 1.0 }
    }

    /// See [`format::width`].
    pub(super) fn width(self, text: &str) -> f64 {
        format::width(text) * self.em()
    }

    /// See [`format::wrap`].
    pub(super) fn wrap(self, text: &str, most: f64) -> Vec<String> {
        format::wrap(text, most / self.em())
    }
}

/// What a picture says to a reader who cannot see it: its name, and what is drawn.
pub(super) struct Described {
    pub(super) title: String,
    pub(super) description: String,
}

/// An SVG element of this size.
pub(super) fn svg((width, height): (f64, f64), told: &Described, draw: impl FnOnce(&mut Canvas)) -> Markup {
    let mut canvas = Canvas::default();
    draw(&mut canvas);
    let (width, height) = (unit(width).max(1.0), unit(height).max(1.0));
    let clean = |text: &str| text.chars().filter(|c| format::allowed(*c)).collect::<String>();
    html! {
        svg xmlns="http://www.w3.org/2000/svg" class="chart" width="100%" viewBox={ "0 0 " (width) " " (height) }
            stroke-linejoin="round" font-family="sans-serif" role="img" {
            title { (clean(&told.title)) }
            desc { (clean(&told.description)) }
            @for element in &canvas.elements { (element) }
        }
    }
}

/// A coordinate or length with one decimal, within limits; 0 if it is not a number.
fn unit(value: f64) -> f64 {
    // Adding zero makes −0 a plain zero.
    if value.is_nan() { 0.0 } else { (value.clamp(-1e5, 1e5) * 10.0).round() / 10.0 + 0.0 }
}

/// The value of a `points` attribute.
fn list(points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        write!(text, "{space}{},{}", unit(*x), unit(*y)).expect("a string takes everything");
    }
    text
}

/// The value of an `opacity` attribute, where one is needed.
fn partial(opacity: f64) -> Option<f64> {
    (opacity < 1.0).then_some(opacity)
}
