//! Studies layers on simulated workers in virtual time: the same methods, scenarios and scheduler, with more machines than
//! are available.
//!
//! Invariant: this module never reads the clock, so a study repeats exactly.

use std::time::Duration;

use super::compare::{Comparison, layer_frame};
use super::layers::NamedLayer;
use super::methods::{Method, code_of};
use super::real_workers::without;
use super::runner::{Contestants, MethodRunner, Progress, Trial};
use super::schema::{MethodPlan, Study};
use fcdcc::array::Element;
use fcdcc::coding::Code;
use fcdcc::conv::ConvShape;
use fcdcc::engine::{LayerOptions, SimulatedCosts, SimulatedLayer};
use fcdcc::error::Result;
use fcdcc::planner::{Rates, Work, subtask_shape};
use fcdcc::scheduler::{Link, SimulatedFleet, SimulatedWork};
use fcdcc::worker::TaskFault;

/// Pause before the next run, as a multiple of the run's latency, so that cancelled workers have stopped, slow ones too.
const PAUSE: u32 = 10;

/// The simulated machines: one worker each, all alike, or threads that share the master's cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimulatedSetting {
    /// The link between the master and each worker.
    pub link: Link,
    /// Compute and codec rates of workers and master. If `cores` is set, all workers share these cores: they are threads of
    /// the master's machine and need no link.
    pub rates: Rates,
}

struct SimulatedContestant {
    fleet: SimulatedFleet,
    layer: Option<SimulatedLayer>,
    shape: ConvShape,
    options: LayerOptions,
    costs: SimulatedCosts,
}

impl SimulatedContestant {
    fn layer(&mut self) -> Result<(&mut SimulatedLayer, &mut SimulatedFleet)> {
        let layer = match self.layer.take() {
            Some(layer) => layer,
            None => SimulatedLayer::prepare(
                &mut self.fleet,
                self.shape.clone(),
                self.options.clone(),
                self.costs,
            )?,
        };
        Ok((self.layer.insert(layer), &mut self.fleet))
    }
}

impl MethodRunner for SimulatedContestant {
    fn run(&mut self, fates: &[TaskFault], _: bool) -> Result<Trial> {
        let (layer, fleet) = self.layer()?;
        fleet.set_fates(fates);
        fleet.reset_usage();
        let run = layer.run(fleet);
        // The stragglers of this run must not slow the next one. Cancelled workers still complete the current sub-result.
        let slowest = fates.iter().map(|fate| fate.delay).max().unwrap_or_default();
        fleet.advance(run.total.saturating_mul(PAUSE) + slowest);
        let begun: f64 = fleet.reset_usage().iter().map(|usage| usage.sub_results as f64).sum();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let used = run.used_sub_results as f64;
        Ok(Trial {
            latency_ms: ms(run.total),
            encode_ms: ms(run.encode),
            wait_ms: ms(run.wait),
            decode_ms: ms(run.decode),
            bytes_up: run.bytes_up as f64,
            bytes_down: run.bytes_down as f64,
            macs: begun * layer.subtask().conv.macs(),
            wasted: if begun > 0.0 { (1.0 - used / begun).clamp(0.0, 1.0) } else { 0.0 },
            redispatched: run.redispatched as f64,
            hedged: run.hedged as f64,
            condition: run.condition.unwrap_or(1.0),
            error: None,
            failure: run.failure,
        })
    }

    fn forget(&mut self) -> Result<()> {
        self.layer = None;
        self.layer().map(drop)
    }
}

/// Simulated costs of a layer at these rates, for workers that compute in `T`.
fn costs<T: Element>(shape: &ConvShape, code: &Code, rates: &Rates) -> Result<SimulatedCosts> {
    let subtask = subtask_shape(shape, code)?;
    let prediction = rates.predict::<T>(shape, code)?;
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let all = rates.worker.seconds(&Work::of(&subtask)) - rates.worker.call_s;
    let sub_result = time(all.max(0.0) / subtask.sub_results() as f64);
    let fixed = time(rates.worker.call_s + rates.host.subtask_s);
    // A coded filter is a sum over k_B banks.
    let filters = (subtask.filter_elems() * code.k_b()) as f64;
    Ok(SimulatedCosts {
        dtype: T::DTYPE,
        work: SimulatedWork { fixed, ..SimulatedWork::of(&subtask, T::DTYPE, sub_result) },
        encode: time(prediction.encode_s + rates.host.layer_s),
        decode: time(prediction.decode_s),
        encode_filters: time(filters * rates.host.encode_mac_s),
        local: time(rates.local_s(shape)),
    })
}

impl Comparison {
    /// Studies one layer on simulated workers that compute in `T`. No numbers are computed, so no errors are measured.
    ///
    /// # Errors
    /// The errors of [`study`](super::study()) and of preparing the layer.
    pub fn simulated_layer<T: Element>(
        &mut self,
        layer: &NamedLayer,
        setting: &SimulatedSetting,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<&Study> {
        let (mut contestants, mut left_out): (Contestants<'_>, Vec<String>) = (Vec::new(), Vec::new());
        for method in &self.methods {
            match self.admit::<T>(layer, *method, setting) {
                Ok((plan, contestant)) => contestants.push((plan, Box::new(contestant))),
                Err(error) => left_out.push(without(&layer.name, *method, error)?),
            }
        }
        let plans: Vec<MethodPlan> = contestants.iter().map(|(plan, _)| plan.clone()).collect();
        let done = self.take(layer_frame(&self.plan, layer), contestants, left_out, observe)?;
        self.condition(&plans)?;
        Ok(self.study(done))
    }

    fn admit<T: Element>(
        &self,
        layer: &NamedLayer,
        method: Method,
        setting: &SimulatedSetting,
    ) -> Result<(MethodPlan, SimulatedContestant)> {
        let workers = self.plan.workers;
        let options = method.options::<T>(&layer.shape, workers, self.plan.tolerate, &self.base)?;
        let plan = method.plan::<T>(&layer.shape, &options)?;
        let code = code_of(&options)?;
        let costs = costs::<T>(&layer.shape, &code, &setting.rates)?;
        let fleet = match setting.rates.cores {
            None => SimulatedFleet::remote(workers, setting.link)?,
            Some(cores) => SimulatedFleet::local(workers, cores as f64)?,
        };
        let shape = layer.shape.clone();
        let mut contestant = SimulatedContestant { fleet, layer: None, shape, options, costs };
        contestant.layer()?;
        Ok((plan, contestant))
    }
}
