//! What a chart shows.

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Straight from point to point.
    #[default]
    Line,
    /// The same in dashes.
    Dashed,
    /// Level until the next point, then up or down: distributions.
    Steps,
    /// Points alone.
    Markers,
    /// Points joined by lines.
    LineMarkers,
}

impl Kind {
    pub(super) fn marked(self) -> bool {
        matches!(self, Kind::Markers | Kind::LineMarkers)
    }
}

/// One method, code or quantity.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// In the legend; equal labels appear there once, empty ones not at all.
    pub label: String,
    /// In the order in which they are joined; one that has no place leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// How they are drawn.
    pub kind: Kind,
    /// Intervals (x, low, high): an area behind lines, whiskers through markers. May be empty.
    pub band: Vec<(f64, f64, f64)>,
    /// Of the palette: 0 is grey, 1 to 7 are colours. Chooses the shape of markers as well.
    pub color: usize,
}

/// Something to compare with, or to point out.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A line at this x, labelled above the plot.
    Vertical {
        /// Its x.
        at: f64,
        /// What it is.
        label: String,
    },
    /// A line at this y, labelled to the right of the plot.
    Horizontal {
        /// Its y.
        at: f64,
        /// What it is.
        label: String,
    },
    /// A ring about a point, labelled beside it.
    Point {
        /// x and y.
        at: (f64, f64),
        /// What it is.
        label: String,
    },
}

/// Series over two axes.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Above the picture; may be empty.
    pub title: String,
    /// With its unit.
    pub x_label: String,
    /// With its unit.
    pub y_label: String,
    /// Logarithmic.
    pub x_log: bool,
    /// Logarithmic.
    pub y_log: bool,
    /// From and to; what lies beyond is cut off. Without it, what holds everything.
    pub x_range: Option<(f64, f64)>,
    /// Likewise.
    pub y_range: Option<(f64, f64)>,
    /// The first is drawn first, under the others.
    pub series: Vec<Series>,
    /// Over the series.
    pub marks: Vec<Mark>,
    /// Names of x = 0, 1, 2 and so on instead of numbers. Markers of several series then stand side by side.
    pub x_names: Vec<String>,
}
