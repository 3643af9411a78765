use super::*;
use crate::format::malformed;
use proptest::prelude::*;

const HOSTILE: &str = "<b>&\"'\u{0}</svg>";

fn series(label: &str, kind: Kind, points: &[(f64, f64)]) -> Series {
    let band = points.iter().map(|(x, y)| (*x, y * 0.9, y * 1.1)).collect();
    Series { label: label.to_owned(), points: points.to_vec(), kind, band, color: 3 }
}

fn every_kind(label: &str, points: &[(f64, f64)]) -> Vec<Series> {
    [Kind::Line, Kind::Dashed, Kind::Steps, Kind::Markers, Kind::LineMarkers]
        .map(|kind| series(label, kind, points))
        .into()
}

fn marks(label: &str, at: f64) -> Vec<Mark> {
    vec![
        Mark::Vertical { at, label: label.to_owned() },
        Mark::Horizontal { at, label: label.to_owned() },
        Mark::Point { at: (at, at), label: label.to_owned() },
    ]
}

/// Positions of everything that is drawn (attributes x, y, points and so on), with the size of the picture.
fn places(svg: &str) -> (Vec<(f64, f64)>, (f64, f64)) {
    let number = |text: &str| text.parse::<f64>().unwrap();
    let attribute = |tag: &str, name: &str| {
        let value = tag.split_once(&format!(" {name}=\""))?.1;
        Some(value.split('"').next().unwrap().to_owned())
    };
    let mut places = Vec::new();
    for tag in svg.split('<').skip(2) {
        for (x, y) in [("x", "y"), ("x1", "y1"), ("x2", "y2"), ("cx", "cy")] {
            if let (Some(x), Some(y)) = (attribute(tag, x), attribute(tag, y)) {
                places.push((number(&x), number(&y)));
            }
        }
        for pair in attribute(tag, "points").unwrap_or_default().split_whitespace() {
            let (x, y) = pair.split_once(',').unwrap();
            places.push((number(x), number(y)));
        }
    }
    let size = attribute(svg, "viewBox").unwrap();
    let size: Vec<f64> = size.split(' ').map(number).collect();
    (places, (size[2], size[3]))
}

#[test]
fn names_are_written_and_escaped() {
    let chart = Chart {
        title: HOSTILE.to_owned(),
        x_label: HOSTILE.to_owned(),
        y_label: HOSTILE.to_owned(),
        series: every_kind(HOSTILE, &[(0.0, 1.0), (1.0, 2.0)]),
        marks: marks(HOSTILE, 1.0),
        x_names: vec![HOSTILE.to_owned(); 2],
        ..Chart::default()
    };
    let bars = Bars {
        title: HOSTILE.to_owned(),
        y_label: HOSTILE.to_owned(),
        parts: vec![HOSTILE.to_owned()],
        groups: vec![(HOSTILE.to_owned(), vec![(HOSTILE.to_owned(), vec![1.0])])],
    };
    for svg in [chart.svg(), bars.svg()].map(Markup::into_string) {
        assert_eq!(malformed(&svg), None);
        assert!(svg.contains("&lt;b&gt;&amp;&quot;") && !svg.contains("<b>") && !svg.contains('\u{0}'));
    }
    // Equal labels appear in the legend once; the others are the name, title, axes, names and marks.
    let label = ">&lt;b&gt;&amp;&quot;'&lt;/svg&gt;<";
    let drawn = |chart: &Chart| chart.svg().into_string().matches(label).count();
    assert_eq!(drawn(&chart), 1 + 3 + 1 + 3 + 2);
    // At the end of its line a name appears as often as in the legend.
    assert_eq!(drawn(&Chart { end_labels: true, ..chart }), 1 + 3 + 1 + 3 + 2);
}

#[test]
fn a_chart_is_told_in_words_too() {
    let chart = Chart {
        title: "Tails".to_owned(),
        x_label: "late workers".to_owned(),
        x_names: ["none", "two"].map(str::to_owned).into(),
        series: vec![series("crme", Kind::Line, &[(0.0, 4.0), (f64::NAN, 1.0), (1.0, 5.0)])],
        ..Chart::default()
    };
    let svg = chart.svg().into_string();
    let told =
        "<title>Tails</title><desc>Across: late workers. crme: from 4.00 at none to 5.00 at two.</desc>";
    assert!(svg.contains("role=\"img\"") && svg.contains(told), "{svg}");
    let groups = vec![("one late".to_owned(), vec![("crme".to_owned(), vec![1.0, 2.0])])];
    let bars = Bars { parts: vec!["encode".to_owned()], y_label: "ms".to_owned(), groups, ..Bars::default() };
    let told = "<title>ms</title><desc>Bars stacked of encode, in ms. one late: crme 3.00.</desc>";
    assert!(bars.svg().into_string().contains(told), "{}", bars.svg().into_string());
    // Negative control: an empty chart names no series.
    assert!(Chart::default().svg().into_string().contains("<title>A chart</title><desc></desc>"));
}

#[test]
fn series_differ_without_their_colours() {
    let colourless = |color| {
        let series = vec![Series { color, ..series("a", Kind::LineMarkers, &[(0.0, 1.0), (1.0, 2.0)]) }];
        let svg = Chart { series, ..Chart::default() }.svg().into_string();
        svg.split("var(--c")
            .map(|part| part.split_once(')').map_or(part, |(_, rest)| rest).to_owned())
            .collect()
    };
    let pictures: Vec<Vec<String>> = (0..SERIES_COLORS).map(colourless).collect();
    let equal = |a: usize| (0..a).filter(|b| pictures[*b] == pictures[a]).count();
    // Colours 0 and 4 are both circles: the grey of the baseline, and the method that the report is about.
    assert_eq!((0..SERIES_COLORS).map(equal).sum::<usize>(), 1);
}

#[test]
fn a_chart_without_data_says_so() {
    let nothing = [(f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, 1.0)];
    let chart = Chart { x_log: true, series: every_kind("a", &nothing), ..Chart::default() };
    for svg in [chart.svg(), Chart::default().svg(), Bars::default().svg()].map(Markup::into_string) {
        assert!(svg.contains("no data") && malformed(&svg).is_none(), "{svg}");
    }
    // Negative control.
    let some = Chart { series: every_kind("a", &[(1.0, 1.0)]), ..Chart::default() };
    assert!(!some.svg().into_string().contains("no data"));
}

#[test]
fn pictures_repeat_and_follow_the_data() {
    let chart = |y| Chart { series: every_kind("a", &[(1.0, 1.0), (2.0, y)]), ..Chart::default() };
    assert_eq!(chart(2.0).svg().0, chart(2.0).svg().0);
    assert_ne!(chart(2.0).svg().0, chart(2.5).svg().0);
}

#[test]
fn long_series_make_small_pictures() {
    let points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i).sqrt(), f64::from(i) / 1e5)).collect();
    let chart = Chart { series: vec![series("a", Kind::Steps, &points)], ..Chart::default() };
    assert!(chart.svg().0.len() < 60_000, "{}", chart.svg().0.len());
}

#[test]
fn a_gap_in_the_data_is_one_in_the_line() {
    let lines = |middle: f64| {
        let points = [(0.0, 1.0), (1.0, 2.0), (2.0, middle), (3.0, 2.0), (4.0, 1.0)];
        let series = vec![Series { points: points.to_vec(), ..Series::default() }];
        Chart { series, ..Chart::default() }.svg().0.matches("stroke-width=\"2.2\"").count()
    };
    assert_eq!((lines(1.5), lines(f64::NAN)), (1, 2));
}

proptest! {
    #[test]
    fn any_data_stays_within_the_picture(
        points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..8),
        (x_log, y_log, end_labels) in any::<(bool, bool, bool)>(),
        range in prop::option::of((any::<f64>(), any::<f64>())),
        names in 0_usize..4, at: f64, label in ".{0,60}",
    ) {
        let chart = Chart {
            title: label.clone(), x_label: label.clone(), y_label: label.clone(), x_log, y_log,
            x_range: range, y_range: range, series: every_kind(&label, &points), marks: marks(&label, at),
            end_labels, x_names: vec![label.clone(); names],
        };
        let lengths: Vec<f64> = points.iter().map(|p| p.0).collect();
        let bars = Bars {
            title: label.clone(), y_label: label.clone(), parts: vec![label.clone(); lengths.len()],
            groups: vec![(label.clone(), vec![(label.clone(), lengths); 2]); names],
        };
        let narrow = chart.svg_of(Size { width: 350.0, plot_height: 120.0 });
        for svg in [chart.svg(), narrow, bars.svg()].map(Markup::into_string) {
            prop_assert_eq!(malformed(&svg), None);
            let (places, (width, height)) = places(&svg);
            let within = |(x, y): &(f64, f64)| {
                (-100.0..=width + 100.0).contains(x) && (-100.0..=height + 100.0).contains(y)
            };
            prop_assert!(places.iter().all(within), "{places:?} of {width} x {height}");
        }
    }
}
