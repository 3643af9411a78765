//! Decides how one layer is computed, and explains the decision.

use std::fmt;

use serde::Serialize;

use super::choose::choose_partitions;
use super::cost::{SubtaskCost, subtask_shape};
use super::rates::{Prediction, Rates};
use crate::array::{Element, once};
use crate::coding::{Code, CodeKind};
use crate::conv::ConvShape;
use crate::error::{Error, Message, Parameter, Result};

/// The choices left to the planner, and its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Number of workers.
    pub workers: usize,
    /// n; `None`: one for each worker, or fewer if that is predicted to be faster.
    pub subtasks: Option<usize>,
    /// Number of stragglers to tolerate.
    pub tolerate: usize,
    /// Code family; `None`: CRME or replication, whichever is predicted to be faster.
    pub code: Option<CodeKind>,
    /// (k_A, k_B), used for a layer that can be divided so.
    pub partitions: Option<(usize, usize)>,
    /// Whether a layer also stays on the host if the workers are predicted to be slower, not only if it cannot be split. If
    /// the workers run on this machine, the host is often faster.
    pub local_if_faster: bool,
    /// The rates.
    pub rates: Rates,
}

/// A way of computing a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// On the workers.
    Coded {
        /// Code family.
        code: CodeKind,
        /// n, the number of subtasks.
        n: usize,
        /// delta, the recovery threshold.
        recovery_threshold: usize,
        /// k_A.
        k_a: usize,
        /// k_B.
        k_b: usize,
    },
    /// On the host, uncoded.
    Local,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coded { code, n, recovery_threshold, k_a, k_b } => {
                write!(f, "{code} n={n} delta={recovery_threshold} {k_a},{k_b}")
            }
            Self::Local => f.write_str("local"),
        }
    }
}

/// A candidate and its predicted time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// The candidate.
    pub way: Way,
    /// Predicted time, seconds.
    pub total_s: f64,
}

/// The decision for one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerPlan {
    /// The chosen way.
    pub way: Way,
    /// Cost of a subtask, if there are any.
    pub cost: Option<SubtaskCost>,
    /// Predicted times of a run, if on the workers.
    pub prediction: Option<Prediction>,
    /// Predicted time on the host, seconds.
    pub local_s: f64,
    /// The reason, readable.
    pub why: String,
    /// The best candidate of each kind, the chosen one included, fastest first.
    pub alternatives: Vec<Alternative>,
}

impl LayerPlan {
    /// Predicted time of the chosen way, seconds.
    #[must_use]
    pub fn total_s(&self) -> f64 {
        self.prediction.map_or(self.local_s, |p| p.total_s())
    }
}

/// Decides how `layer` is computed, for elements of type `T`.
///
/// # Errors
/// Those of [`choose_partitions`]; [`Error::Mismatch`] when there are too few subtasks for the requested partitions.
pub fn plan_layer<T: Element>(layer: &ConvShape, options: &PlanOptions) -> Result<LayerPlan> {
    once!(T as E; fn(layer: &ConvShape = layer, options: &PlanOptions = options) -> Result<LayerPlan> {
        plan_here::<E>(layer, options)
    }, std::convert::identity)
}

/// [`plan_layer`], in the crate that calls it.
fn plan_here<T: Element>(layer: &ConvShape, options: &PlanOptions) -> Result<LayerPlan> {
    let rates = &options.rates;
    let local_s = rates.local_s(layer);
    let local = Alternative { way: Way::Local, total_s: local_s };
    if let Some(given) = given::<T>(layer, options)? {
        let why = "as asked for".to_owned();
        return finish::<T>(layer, rates, given, vec![given, local], local_s, why);
    }
    let families = options.code.map_or(vec![CodeKind::Crme, CodeKind::Replication], |code| vec![code]);
    let most = options.subtasks.unwrap_or(options.workers);
    let fewest = if options.subtasks.is_some() { most } else { (options.tolerate + 1).min(most) };
    let mut found: Vec<Alternative> = Vec::new();
    let mut unsplit = false;
    for code in families {
        let mut best: Option<Alternative> = None;
        for n in fewest..=most {
            let (pair, prediction) = choose_partitions::<T>(layer, code, n, options.tolerate, rates)?;
            // Every worker would compute the whole layer, although a code would allow less.
            if pair == (1, 1) && code.parts(n, options.tolerate) > 1 {
                unsplit |= n == most;
                continue;
            }
            let total_s = prediction.total_s();
            if best.is_none_or(|b| total_s < b.total_s) {
                best = Some(Alternative { way: way(code, pair, n)?, total_s });
            }
        }
        found.extend(best);
    }
    found.push(local);
    found.sort_by(|a, b| a.total_s.total_cmp(&b.total_s));
    let on_workers = found.iter().find(|a| a.way != Way::Local).copied();
    let chosen = match on_workers {
        Some(coded) if !(options.local_if_faster && local_s <= coded.total_s) => coded,
        _ => local,
    };
    let why = explain(layer, chosen, on_workers, local_s, unsplit);
    finish::<T>(layer, rates, chosen, found, local_s, why)
}

/// The partitions given by the caller, if the layer can be divided so.
fn given<T: Element>(layer: &ConvShape, options: &PlanOptions) -> Result<Option<Alternative>> {
    let Some((k_a, k_b)) = options.partitions else { return Ok(None) };
    let kind = options.code.unwrap_or_default();
    let code = Code::new(kind, k_a, k_b, options.subtasks.unwrap_or(options.workers))?;
    let fits = k_b <= layer.out_channels / layer.groups && subtask_shape(layer, &code).is_ok();
    if !fits {
        return Ok(None);
    }
    let total_s = options.rates.predict::<T>(layer, &code)?.total_s();
    Ok(Some(Alternative { way: way(kind, (k_a, k_b), code.n())?, total_s }))
}

fn way(kind: CodeKind, pair: (usize, usize), n: usize) -> Result<Way> {
    let code = Code::new(kind, pair.0, pair.1, n)?;
    Ok(Way::Coded {
        code: kind,
        n: code.n(),
        recovery_threshold: code.recovery_threshold(),
        k_a: pair.0,
        k_b: pair.1,
    })
}

fn finish<T: Element>(
    layer: &ConvShape,
    rates: &Rates,
    chosen: Alternative,
    alternatives: Vec<Alternative>,
    local_s: f64,
    why: String,
) -> Result<LayerPlan> {
    let (mut cost, mut prediction) = (None, None);
    if let Way::Coded { code, n, k_a, k_b, .. } = chosen.way {
        let code = Code::new(code, k_a, k_b, n)?;
        cost = Some(SubtaskCost::of(&subtask_shape(layer, &code)?));
        prediction = Some(rates.predict::<T>(layer, &code)?);
    }
    Ok(LayerPlan { way: chosen.way, cost, prediction, local_s, why, alternatives })
}

/// The explanation, in one sentence.
fn explain(
    layer: &ConvShape,
    chosen: Alternative,
    on_workers: Option<Alternative>,
    local_s: f64,
    unsplit: bool,
) -> String {
    let ms = |s: f64| format!("{:.2} ms", s * 1e3);
    let (rows, filters) = (layer.output[layer.split_axis()], layer.out_channels / layer.groups);
    match (chosen.way, on_workers) {
        (Way::Local, None) => format!(
            "too small to split: {rows} output rows, {filters} filters a group; every worker would compute all of it"
        ),
        (Way::Local, Some(other)) => {
            format!("about {} on the host, {} on the workers ({})", ms(local_s), ms(other.total_s), other.way)
        }
        (Way::Coded { code: CodeKind::Replication, .. }, _) => {
            let instead = if unsplit { "too small to be coded" } else { "copies are cheaper than coding" };
            format!("{instead}: {rows} output rows, {filters} filters a group")
        }
        (Way::Coded { k_a, k_b, .. }, _) => {
            let (input, filters) = (layer.input_elems() as f64, layer.weight_elems() as f64);
            let ratio = if input >= filters {
                format!("{:.1} input elements for each filter element", input / filters)
            } else {
                format!("{:.1} filter elements for each input element", filters / input)
            };
            let side = match (k_a, k_b) {
                (1, _) => "filters alone are split",
                (_, 1) => "the input alone is split",
                _ if k_a > k_b => "mostly the input is split",
                _ if k_a < k_b => "mostly the filters are split",
                _ => "both sides are split alike",
            };
            format!("{side}: {ratio}, {rows} output rows")
        }
    }
}

impl PlanOptions {
    /// CRME with one subtask for each of `workers`, `tolerate` of which may straggle.
    #[must_use]
    pub fn new(workers: usize, tolerate: usize) -> Self {
        Self {
            workers,
            subtasks: Some(workers),
            tolerate,
            code: Some(CodeKind::Crme),
            partitions: None,
            local_if_faster: false,
            rates: Rates::default(),
        }
    }

    /// Checks the options that no layer can use.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for no workers or no subtasks.
    pub fn check(&self) -> Result<()> {
        if self.workers == 0 || self.subtasks == Some(0) {
            let what = Message::about("number of workers", Parameter::Workers);
            return Err(Error::invalid(what, 0, "use at least one"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn layer(input: &[usize], weight: &[usize]) -> ConvShape {
        ConvShape::new(input, weight, &ConvParams::default()).unwrap()
    }

    fn plan(layer: &ConvShape, options: &PlanOptions) -> LayerPlan {
        plan_layer::<f32>(layer, options).unwrap()
    }

    #[test]
    fn what_cannot_be_split_stays_on_the_host() {
        let place = |weight: &[usize], n, tolerate| {
            plan(&layer(&[1, 1, 2, 2], weight), &PlanOptions::new(n, tolerate))
        };
        let local = place(&[1, 1, 1, 1], 6, 2);
        assert!(local.way == Way::Local && local.why.contains("2 output rows, 1 filters"), "{local:?}");
        assert!(matches!(place(&[8, 1, 1, 1], 6, 2).way, Way::Coded { k_b: 8, .. }));
        // If all but one worker may be missing, replication is the right code.
        assert!(matches!(place(&[1, 1, 1, 1], 3, 2).way, Way::Coded { k_a: 1, k_b: 1, n: 3, .. }));
    }

    #[test]
    fn a_fully_connected_layer_is_coded_where_it_pays() {
        let place = |inputs: usize, outputs: usize, cores| {
            let mut options = PlanOptions { local_if_faster: true, ..PlanOptions::new(6, 2) };
            options.rates.cores = cores;
            options.rates.host.parallel = 1.0;
            plan(&layer(&[1, inputs, 1], &[outputs, inputs, 1]), &options)
        };
        assert!(matches!(place(25088, 4096, None).way, Way::Coded { k_a: 1, k_b: 8, .. }));
        let local = place(84, 10, None);
        assert!(local.way == Way::Local && local.why.contains("on the host"), "{local:?}");
        // Six workers on one processor only add work.
        assert_eq!(place(25088, 4096, Some(1)).way, Way::Local);
    }

    #[test]
    fn partitions_that_are_asked_for_are_taken_where_they_fit() {
        let options = PlanOptions { partitions: Some((4, 4)), ..PlanOptions::new(6, 2) };
        let taken = plan(&layer(&[1, 8, 16, 16], &[8, 8, 3, 3]), &options);
        assert!(matches!(taken.way, Way::Coded { k_a: 4, k_b: 4, .. }) && taken.why == "as asked for");
        let replaced = plan(&layer(&[1, 8, 5, 5], &[16, 8, 3, 3]), &options);
        assert!(matches!(replaced.way, Way::Coded { k_a: 1, k_b: 8, .. }), "{replaced:?}");
        let odd = PlanOptions { partitions: Some((3, 4)), ..options };
        assert!(plan_layer::<f32>(&layer(&[1, 8, 16, 16], &[8, 8, 3, 3]), &odd).is_err());
    }

    #[test]
    fn the_planner_may_choose_family_and_number_of_subtasks() {
        let free = PlanOptions { code: None, subtasks: None, ..PlanOptions::new(6, 2) };
        // Large: as many parts as possible.
        let large = plan(&layer(&[1, 64, 58, 58], &[64, 64, 3, 3]), &free);
        assert!(matches!(large.way, Way::Coded { code: CodeKind::Crme, n: 6, .. }), "{large:?}");
        assert!(large.alternatives.iter().any(|a| a.way == Way::Local));
        assert!(large.alternatives.windows(2).all(|w| w[0].total_s <= w[1].total_s));
        // Hardly any work, and one row of one filter: copies.
        let tiny = plan(&layer(&[1, 1, 3, 3], &[1, 1, 3, 3]), &free);
        assert!(
            matches!(tiny.way, Way::Coded { n: 3, recovery_threshold: 1, .. }) || tiny.way == Way::Local,
            "{tiny:?}"
        );
    }

    #[test]
    fn nothing_for_nobody_is_refused() {
        assert!(PlanOptions { subtasks: Some(0), ..PlanOptions::new(6, 2) }.check().is_err());
        assert!(PlanOptions::new(0, 2).check().is_err());
        assert!(PlanOptions::new(6, 2).check().is_ok());
    }
}
