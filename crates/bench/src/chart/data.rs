//! The data of a chart.

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Straight lines between the points.
    #[default]
    Line,
    /// Dashed straight lines between the points.
    Dashed,
    /// Level until the next point, then up or down; for distributions.
    Steps,
    /// Points only.
    Markers,
    /// Points joined by lines.
    LineMarkers,
}

impl Kind {
    pub(super) fn marked(self) -> bool {
        matches!(self, Kind::Markers | Kind::LineMarkers)
    }
}

/// The points of one method, code or quantity.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Name in the legend; equal names appear once, empty ones not at all.
    pub label: String,
    /// The points, in joining order; a point that cannot be drawn leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// How the points are drawn.
    pub kind: Kind,
    /// Intervals (x, low, high), drawn as an area behind lines or as whiskers through markers. May be empty.
    pub band: Vec<(f64, f64, f64)>,
    /// Index into the palette: 0 is grey, 1 to 7 are colours. Selects the shape of markers too.
    pub color: usize,
}

/// A reference line or a highlighted point.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A line at this x, labelled above the plot.
    Vertical {
        /// Its x.
        at: f64,
        /// Its text.
        label: String,
    },
    /// A line at this y, labelled to the right of the plot.
    Horizontal {
        /// Its y.
        at: f64,
        /// Its text.
        label: String,
    },
    /// A ring around a point, labelled beside it.
    Point {
        /// x and y.
        at: (f64, f64),
        /// Its text.
        label: String,
    },
}

/// The natural size of a chart, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Width of the whole picture.
    pub width: f64,
    /// Height of the plot; titles, legend and labels are added.
    pub plot_height: f64,
}

impl Default for Size {
    fn default() -> Self {
        Size { width: 600.0, plot_height: 260.0 }
    }
}

/// Series over two axes.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// Above the picture; may be empty.
    pub title: String,
    /// Label of the x axis, with its unit.
    pub x_label: String,
    /// Label of the y axis, with its unit.
    pub y_label: String,
    /// Whether the x axis is logarithmic.
    pub x_log: bool,
    /// Whether the y axis is logarithmic.
    pub y_log: bool,
    /// Ends of the x axis; data beyond are clipped. By default the axis holds all data.
    pub x_range: Option<(f64, f64)>,
    /// Ends of the y axis; data beyond are clipped. By default the axis holds all data.
    pub y_range: Option<(f64, f64)>,
    /// The series, drawn in order, so that later ones cover earlier ones.
    pub series: Vec<Series>,
    /// The marks, drawn over the series.
    pub marks: Vec<Mark>,
    /// Whether each series has its name at the end of its line instead of in a legend above the plot.
    pub end_labels: bool,
    /// Names for x = 0, 1, 2 and so on instead of numbers; markers of several series then stand side by side.
    pub x_names: Vec<String>,
}
