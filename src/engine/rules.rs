//! What the runs of a layer under one code have in common, on real and on simulated workers: which sets of results are
//! good enough, and what earlier runs tell about the next.

use std::sync::Mutex;
use std::time::Duration;

use super::accuracy::Accuracy;
use super::history::{LatencyHistory, RunContext};
use super::options::LayerOptions;
use super::tracker::RecoveryContext;
use crate::coding::{Code, DecoderCache, ParityCheckCache};
use crate::scheduler::{Audit, RunEstimates, RunOutcome};
use crate::sync::locked;

/// Maximum number of decoders that a layer caches, one for each responder set.
pub(super) const CACHED_DECODERS: usize = 256;

/// See the module documentation.
pub(super) struct RunRules {
    pub(super) code: Code,
    pub(super) accuracy: Accuracy,
    decoders: DecoderCache,
    checkers: ParityCheckCache,
    history: Mutex<LatencyHistory>,
}

impl RunRules {
    /// The rules of a layer that has not run yet.
    pub(super) fn new(code: Code, accuracy: Accuracy, checkers: ParityCheckCache) -> Self {
        Self {
            history: Mutex::new(LatencyHistory::new(code.n())),
            decoders: DecoderCache::new(CACHED_DECODERS),
            code,
            accuracy,
            checkers,
        }
    }

    /// The context in which a run with this audit tracks its results. `energies` are as in [`RecoveryContext`].
    pub(super) fn recovery(
        &self,
        options: &LayerOptions,
        audit: Audit,
        energies: Vec<f64>,
    ) -> RecoveryContext<'_> {
        RecoveryContext {
            code: &self.code,
            decoders: &self.decoders,
            checkers: &self.checkers,
            rounding: self.accuracy.rounding,
            audit,
            partial: options.policy.partial,
            energies,
        }
    }

    /// Estimates for the next run. Windows whose amplification exceeds `amplification` are not decoded; `crowded` workers
    /// share cores; the layer computed on this machine takes `local`.
    pub(super) fn estimates(
        &self,
        options: &LayerOptions,
        amplification: f64,
        crowded: bool,
        local: Duration,
    ) -> RunEstimates {
        let context = RunContext {
            options,
            code: &self.code,
            rounding: self.accuracy.rounding,
            max_error: self.accuracy.max_error(amplification, options.max_error),
            crowded,
            local,
        };
        locked(&self.history).terms(&context)
    }

    /// Records a run that is over.
    pub(super) fn learn<R>(&self, run: &mut RunOutcome<R>) {
        run.settle();
        locked(&self.history).learn(self.code.n(), run);
    }
}
