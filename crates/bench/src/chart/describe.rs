//! Charts in words, for readers who do not see them.
//!
//! Invariant: a description names every series of the legend.

use super::bars::total;
use super::canvas::Described;
use super::{Bars, Chart};
use crate::format::number;

impl Chart {
    /// Indices of the series in the legend: those with a name, each name once.
    pub(super) fn listed(&self) -> Vec<usize> {
        let first = |i: &usize| {
            let label = &self.series[*i].label;
            !label.is_empty() && self.series[..*i].iter().all(|s| s.label != *label)
        };
        (0..self.series.len()).filter(first).collect()
    }

    pub(super) fn described(&self) -> Described {
        let x = |value: f64| {
            let name = self.x_names.iter().enumerate().find(|(i, _)| *i as f64 == value);
            name.map_or_else(|| number(value), |(_, name)| name.clone())
        };
        let series = self.listed().into_iter().map(|i| {
            let series = &self.series[i];
            let mut shown = series.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
            let at = |(place, value): &(f64, f64)| format!("{} at {}", number(*value), x(*place));
            match (shown.next(), shown.next_back()) {
                (None, _) => format!("{}: no data", series.label),
                (Some(only), None) => format!("{}: {}", series.label, at(only)),
                (Some(first), Some(last)) => format!("{}: from {} to {}", series.label, at(first), at(last)),
            }
        });
        let axes = [("Across: ", &self.x_label), ("Up: ", &self.y_label)];
        let axes = axes.into_iter().filter(|(_, label)| !label.is_empty());
        let parts: Vec<String> = axes.map(|(axis, label)| format!("{axis}{label}")).chain(series).collect();
        Described { title: named(&self.title, &self.y_label), description: sentence(&parts) }
    }
}

impl Bars {
    pub(super) fn described(&self) -> Described {
        let groups = self.groups.iter().map(|(name, bars)| {
            let bars: Vec<String> = bars.iter().map(|(name, bar)| format!("{name} {}", total(bar))).collect();
            format!("{name}: {}", bars.join(", "))
        });
        let parts = [format!("Bars stacked of {}, in {}", self.parts.join(", "), self.y_label)];
        let parts: Vec<String> = parts.into_iter().chain(groups).collect();
        Described { title: named(&self.title, &self.y_label), description: sentence(&parts) }
    }
}

/// The title, or else the label of the axis.
fn named(title: &str, label: &str) -> String {
    let name = [title, label].into_iter().find(|text| !text.is_empty());
    name.unwrap_or("A chart").to_owned()
}

fn sentence(parts: &[String]) -> String {
    if parts.is_empty() { String::new() } else { parts.join(". ") + "." }
}
