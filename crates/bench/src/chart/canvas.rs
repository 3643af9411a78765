//! Drawing primitives of charts: lines, shapes and text in view box units, over plotters' SVG backend.
//!
//! Colours are CSS variables (`--c0` and so on) that the page may redefine, so that one picture serves light pages, dark
//! pages and paper.
//!
//! Invariant: drawing cannot fail, whatever the coordinates.

use crate::format;
use plotters::prelude::{
    Color, DrawingBackend, FontFamily, FontStyle, FontTransform, IntoTextStyle, RGBAColor, RGBColor,
    SVGBackend, ShapeStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Plotters has integer coordinates, so pictures are drawn this much larger.
const SCALE: f64 = 10.0;
/// Plotters divides font sizes by this.
const PLOTTERS_EM: f64 = 1.24;

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

/// Placeholder colours, because plotters does not support named colours.
const INK: RGBColor = RGBColor(1, 2, 3);
const PAPER: RGBColor = RGBColor(254, 253, 252);

impl Paint {
    fn solid(self, opacity: f64) -> RGBAColor {
        match self {
            Paint::Ink => INK.mix(opacity),
            Paint::Paper => PAPER.mix(opacity),
            Paint::Color(index) => {
                // Encodes the index; the CSS variable replaces it in the complete picture.
                RGBColor(250, 251, u8::try_from(index % PALETTE.len()).unwrap_or(0)).mix(opacity)
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

impl Dash {
    /// A placeholder width that no other line has, because plotters does not support dashes.
    fn stand_in(self) -> u32 {
        9001 + self as u32
    }

    /// The attributes that replace the placeholder.
    fn style(self) -> &'static str {
        match self {
            Dash::Bold => "\"22\" stroke-dasharray=\"70 40\"",
            Dash::Fine => "\"12\" stroke-dasharray=\"30 30\"",
        }
    }
}

/// The alignment of a line of text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Left,
    Middle,
    Right,
}

/// A picture that is being drawn.
pub(super) struct Canvas<'a>(SVGBackend<'a>);

impl Canvas<'_> {
    /// A line through points.
    pub(super) fn path(&mut self, points: &[(f64, f64)], width: f64, (paint, opacity): (Paint, f64)) {
        let style = ShapeStyle { color: paint.solid(opacity), filled: false, stroke_width: whole(width) };
        if points.len() > 1 {
            written(self.0.draw_path(points.iter().map(|p| place(*p)), &style));
        }
    }

    /// A dashed line through points.
    pub(super) fn dashes(&mut self, points: &[(f64, f64)], dash: Dash, paint: (Paint, f64)) {
        self.path(points, f64::from(dash.stand_in()) / SCALE, paint);
    }

    /// A filled shape.
    pub(super) fn area(&mut self, corners: &[(f64, f64)], (paint, opacity): (Paint, f64)) {
        if corners.len() > 2 {
            written(self.0.fill_polygon(corners.iter().map(|p| place(*p)), &paint.solid(opacity)));
        }
    }

    /// A filled rectangle.
    pub(super) fn rect(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        (paint, opacity): (Paint, f64),
    ) {
        let style = paint.solid(opacity);
        written(self.0.draw_rect(place((x, y)), place((x + width, y + height)), &style, true));
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
                let style = ShapeStyle { color: paint.solid(1.0), filled: true, stroke_width: 0 };
                return written(self.0.draw_circle(place((x, y)), whole(size), &style, true));
            }
        };
        self.area(&shape.iter().map(|d| corner(*d)).collect::<Vec<_>>(), (paint, 1.0));
    }

    /// A circle's outline.
    pub(super) fn ring(&mut self, center: (f64, f64), radius: f64, width: f64, paint: Paint) {
        let style = ShapeStyle { color: paint.solid(1.0), filled: false, stroke_width: whole(width) };
        written(self.0.draw_circle(place(center), whole(radius), &style, false));
    }

    /// A line of text, vertically centred on `at`.
    pub(super) fn text(&mut self, at: (f64, f64), text: &str, font: Font, anchor: Anchor) {
        let clean: String = text.chars().filter(|c| format::allowed(*c) && !c.is_control()).collect();
        let horizontal = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let color = font.paint.solid(font.opacity);
        let style = (FontFamily::SansSerif, font.size * SCALE * PLOTTERS_EM)
            .into_text_style(&(1, 1))
            .pos(Pos::new(horizontal, VPos::Center))
            .transform(FontTransform::None)
            .color(&color);
        let style = if font.bold {
            plotters::style::TextStyle { font: style.font.clone().style(FontStyle::Bold), ..style }
        } else {
            style
        };
        if !clean.is_empty() {
            written(self.0.draw_text(&clean, &style, place(at)));
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

/// An SVG element of this size; `label` is its accessible name.
pub(super) fn svg(size: (f64, f64), label: &str, draw: impl FnOnce(&mut Canvas<'_>)) -> String {
    let (width, height) = place(size);
    let mut drawn = String::new();
    {
        let pixels = (width.unsigned_abs().max(1), height.unsigned_abs().max(1));
        let mut canvas = Canvas(SVGBackend::with_string(&mut drawn, pixels));
        draw(&mut canvas);
        written(canvas.0.present());
    }
    let body = drawn.split_once(">\n").map_or("", |(_, body)| body);
    // Quotes in text are escaped, so these match attributes only.
    let mut body = body
        .replace(&attribute(INK), "\"currentColor\"")
        .replace(&attribute(PAPER), "\"var(--paper,#FFFFFF)\"")
        .replace(" opacity=\"1\"", "")
        .replace(" font-family=\"sans-serif\"", "")
        .replace(" text-anchor=\"start\"", "")
        .replace("\n<", "<");
    for dash in [Dash::Bold, Dash::Fine] {
        body = body.replace(&format!("\"{}\"", dash.stand_in()), dash.style());
    }
    for (i, (light, _)) in PALETTE.iter().enumerate() {
        let stand_in = RGBColor(250, 251, u8::try_from(i).unwrap_or(0));
        body = body.replace(&attribute(stand_in), &format!("\"var(--c{i},{light})\""));
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" width=\"100%\" viewBox=\"0 0 {width} {height}\" \
         stroke-linejoin=\"round\" font-family=\"sans-serif\" role=\"img\" aria-label=\"{}\">{body}",
        format::escape(label)
    )
}

fn attribute(RGBColor(r, g, b): RGBColor) -> String {
    format!("\"#{r:02X}{g:02X}{b:02X}\"")
}

#[expect(clippy::cast_possible_truncation, reason = "rounded and clamped")]
fn place((x, y): (f64, f64)) -> (i32, i32) {
    let whole = |v: f64| (v * SCALE).round().clamp(-1e6, 1e6) as i32;
    (whole(x), whole(y))
}

fn whole(size: f64) -> u32 {
    place((size, 0.0)).0.unsigned_abs()
}

/// Checks a drawing result: the backend writes into a string, which cannot fail.
fn written<E>(result: Result<(), E>) {
    debug_assert!(result.is_ok(), "an SVG was not written");
}
