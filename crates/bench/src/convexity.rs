//! Every feasible (k_A, k_B) of a layer: predicted time, measured time, and the cost by the paper's formula.
//!
//! Invariant: pairs are measured in turns, so that whatever slows the machine slows all of them.

use std::time::Duration;

use ndarray::{ArrayD, IxDyn};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::layers::NamedLayer;
use super::real_workers::numbers;
use super::stats;
use fcdcc::array::Element;
use fcdcc::coding::{Code, CodeKind};
use fcdcc::engine::{CodedConv, LayerOptions, SharedWeight};
use fcdcc::error::{Error, Result};
use fcdcc::planner::{PaperCost, Rates, SubtaskCost, feasible_partitions, subtask_shape};
use fcdcc::scheduler::{OnShortfall, Pool};

/// Maximum wait between two runs for workers that still compute unneeded results.
const IDLE: Duration = Duration::from_mins(1);

/// All feasible pairs of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Convexity {
    /// The layer's name.
    pub layer: String,
    /// Code family.
    pub code: String,
    /// Subtasks.
    pub n: usize,
    /// delta.
    pub recovery_threshold: usize,
    /// The pairs by ascending k_A.
    pub pairs: Vec<Pair>,
    /// The real k_A that minimizes the paper's cost.
    pub paper_k_a: f64,
    /// The pair that the planner chooses.
    pub chosen: (usize, usize),
}

/// One pair (k_A, k_B).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// k_A.
    pub k_a: usize,
    /// k_B.
    pub k_b: usize,
    /// Time predicted by the planner, in milliseconds.
    pub predicted_ms: f64,
    /// Median of the measured times in milliseconds; `None` if nothing was measured.
    pub measured_ms: Option<f64>,
    /// Elements uploaded for a subtask.
    pub upload_elems: usize,
    /// Elements of the coded filters of a subtask.
    pub storage_elems: usize,
    /// The paper's cost of a subtask.
    pub paper_cost: f64,
}

impl Convexity {
    /// Predictions without measurements.
    ///
    /// # Errors
    /// The errors of [`feasible_partitions`].
    pub fn predict<T: Element>(
        layer: &NamedLayer,
        code: CodeKind,
        n: usize,
        tolerate: usize,
        rates: &Rates,
    ) -> Result<Self> {
        let paper = PaperCost::default();
        let mut threshold = 0;
        let mut pairs = Vec::new();
        for (k_a, k_b) in feasible_partitions(&layer.shape, code, n, tolerate)? {
            let code = Code::new(code, k_a, k_b, n)?;
            threshold = code.recovery_threshold();
            let cost = SubtaskCost::of(&subtask_shape(&layer.shape, &code)?);
            pairs.push(Pair {
                k_a,
                k_b,
                predicted_ms: rates.predict::<T>(&layer.shape, &code)?.total_s() * 1e3,
                measured_ms: None,
                upload_elems: cost.upload_elems,
                storage_elems: cost.storage_elems,
                paper_cost: paper.of(&cost),
            });
        }
        pairs.sort_by_key(|pair| (pair.k_a, pair.k_b));
        let (chosen, _) = fcdcc::planner::choose_partitions::<T>(&layer.shape, code, n, tolerate, rates)?;
        Ok(Self {
            layer: layer.name.clone(),
            code: code.name().to_owned(),
            n,
            recovery_threshold: threshold,
            pairs,
            paper_k_a: paper.optimal_k_a(&layer.shape, threshold),
            chosen,
        })
    }

    /// Runs every pair `trials` times on `pool`, after one warm-up run. `observe` receives the number of completed rounds
    /// and their total.
    ///
    /// # Errors
    /// The errors of preparing and running the layer.
    pub fn measure<T: Element>(
        &mut self,
        layer: &NamedLayer,
        pool: &Pool,
        trials: usize,
        seed: u64,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shape = &layer.shape;
        let weight: SharedWeight<T> = std::sync::Arc::new(numbers::<T>(shape.weight_elems(), &mut rng));
        let input =
            ArrayD::from_shape_vec(IxDyn(&shape.input_shape()), numbers(shape.input_elems(), &mut rng))
                .expect("as many numbers as the shape has elements");
        let prepare = |pair: &Pair| {
            // Decodes from the first results and does nothing else, so that the time is that of the pair.
            let options = LayerOptions {
                name: layer.name.clone(),
                code: self.code.parse()?,
                subtasks: Some(self.n),
                partitions: Some((pair.k_a, pair.k_b)),
                ..LayerOptions::default()
            }
            .hedge(None)
            .patience(0.0)
            .on_shortfall(OnShortfall::Fail)
            .deadline(Duration::from_mins(5));
            CodedConv::prepare_shared(pool, shape.clone(), std::sync::Arc::clone(&weight), None, options)
        };
        let prepared = self.pairs.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        let mut times = vec![Vec::with_capacity(trials); prepared.len()];
        let mut order: Vec<usize> = (0..prepared.len()).collect();
        for trial in 0..=trials {
            order.shuffle(&mut rng);
            for &at in &order {
                let run = prepared[at].run(input.view())?;
                if !pool.wait_idle(IDLE) {
                    let help = "a worker hangs: leave it out of the pool".into();
                    return Err(Error::Timeout {
                        what: "waiting for idle workers".to_owned(),
                        limit: IDLE,
                        help,
                    });
                }
                if trial > 0 {
                    times[at].push(run.report.total_ms);
                }
            }
            observe(trial, trials);
        }
        for (pair, times) in self.pairs.iter_mut().zip(times) {
            pair.measured_ms = (trials > 0).then(|| stats::median(&times));
        }
        Ok(())
    }

    /// The chosen pair.
    #[must_use]
    pub fn choice(&self) -> Option<&Pair> {
        self.pairs.iter().find(|pair| (pair.k_a, pair.k_b) == self.chosen)
    }

    /// Measured time of the chosen pair over that of the fastest pair; 1 if no pair is faster.
    #[must_use]
    pub fn regret(&self) -> Option<f64> {
        let best = self.pairs.iter().filter_map(|p| p.measured_ms).min_by(f64::total_cmp)?;
        Some(self.choice()?.measured_ms? / best)
    }

    /// Predicted over measured time of the chosen pair.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let choice = self.choice()?;
        Some(choice.predicted_ms / choice.measured_ms?)
    }
}
