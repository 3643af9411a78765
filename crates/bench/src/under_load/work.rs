//! What a request asks of master, links and machines under each method: seconds and bytes, step by step.
//!
//! Invariant: the seconds of a piece of work are those that the planner predicts from the same rates, whatever the method.

use super::spec::{LoadMethod, LoadSpec, MachineSpec, MasterSpec};
use crate::layers::NamedLayer;
use fcdcc::coding::{Code, CodeKind};
use fcdcc::conv::ConvShape;
use fcdcc::error::Result;
use fcdcc::planner::{Rates, Work, WorkerRates, choose_partitions, subtask_shape};
use fcdcc::worker::SubtaskShape;

/// The rate, in billions of multiply-adds a second, and the cores to which [`Rates::default`] belongs.
const DEFAULT_RATE: f64 = 30.0;
const DEFAULT_CORES: f64 = 2.0;

/// A step on machines: parts, of which some number must be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FanOut {
    /// Parts, one a machine.
    pub(super) parts: usize,
    /// Answers that are needed.
    pub(super) needed: usize,
    /// Machines that get each part from the beginning.
    pub(super) copies: usize,
    /// Bytes sent for a part.
    pub(super) up_bytes: f64,
    /// Bytes of its answer.
    pub(super) down_bytes: f64,
    /// Seconds of a machine for a part, at full speed.
    pub(super) work_s: f64,
    /// Bytes sent before that to a machine which was not prepared for the part.
    pub(super) filter_bytes: f64,
    /// All parts have the same input: a machine that has it needs it no second time.
    pub(super) shares_input: bool,
    /// Layers of a part.
    pub(super) layers: usize,
}

/// One step of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Seconds of the master, at the computations of all of its cores.
    Master(f64),
    /// An index into [`RequestPlan::fan_outs`].
    FanOut(usize),
}

/// The machines among which a step chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// All of them.
    Any,
    /// A group of this many, the same for all steps of a request.
    Group(usize),
}

/// A request under one method.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RequestPlan {
    pub(super) steps: Vec<Step>,
    pub(super) fan_outs: Vec<FanOut>,
    pub(super) placement: Placement,
    /// The quantile of recent times after which late parts are sent a second time.
    pub(super) hedge: Option<f64>,
}

impl RequestPlan {
    fn push_master(&mut self, seconds: f64) {
        match self.steps.last_mut() {
            Some(Step::Master(before)) => *before += seconds,
            _ => self.steps.push(Step::Master(seconds)),
        }
    }
}

/// Rates of machines and master.
pub(super) fn rates(machines: &MachineSpec, master: &MasterSpec) -> Rates {
    let base = Rates::default();
    let slower = DEFAULT_RATE / master.mac_rate;
    let codec = slower * DEFAULT_CORES / master.cores as f64;
    let host = base.host;
    let call_s = machines.task_overhead.seconds();
    Rates {
        worker: WorkerRates { call_s, ..scaled(&base.worker, DEFAULT_RATE / machines.mac_rate) },
        host: fcdcc::planner::HostRates {
            layer_s: host.layer_s * slower,
            subtask_s: host.subtask_s * slower,
            encode_elem_s: host.encode_elem_s * codec,
            encode_mac_s: host.encode_mac_s * codec,
            decode_elem_s: host.decode_elem_s * codec,
            decode_mac_s: host.decode_mac_s * codec,
            thread: scaled(&host.thread, slower),
            parallel: master.cores as f64,
        },
        ..base
    }
}

fn scaled(rates: &WorkerRates, by: f64) -> WorkerRates {
    WorkerRates {
        call_s: rates.call_s * by,
        sub_result_s: rates.sub_result_s * by,
        mac_s: rates.mac_s * by,
        direct_mac_s: rates.direct_mac_s * by,
        column_s: rates.column_s * by,
        packed_s: rates.packed_s * by,
        filter_s: rates.filter_s * by,
        upload_s: rates.upload_s * by,
        download_s: rates.download_s * by,
    }
}

/// The work of a whole layer, with the same kernels as for subtasks (Winograd's included).
fn whole(shape: &ConvShape) -> Work {
    Work::of(&SubtaskShape { conv: shape.clone(), slabs: 1, banks: 1, plain: false })
}

/// Bytes a second of a link.
pub(super) fn bytes_s(mbit: f64) -> f64 {
    mbit * 1e6 / 8.0
}

/// A model and what its computation costs.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    layers: Vec<NamedLayer>,
    rates: Rates,
    element_bytes: f64,
    latency_s: f64,
    /// Bytes a second of a machine's link, and of the master's.
    links: [f64; 2],
    group: usize,
    tolerate: usize,
}

impl Workload {
    /// The workload of the layers on the machines of `spec`.
    pub(super) fn new(layers: Vec<NamedLayer>, spec: &LoadSpec) -> Self {
        Self {
            layers,
            rates: rates(&spec.machines, &spec.master),
            element_bytes: spec.coding.element_bytes as f64,
            latency_s: spec.machines.latency.seconds(),
            links: [bytes_s(spec.machines.link_mbit), bytes_s(spec.master.link_mbit)],
            group: spec.coding.group,
            tolerate: spec.coding.tolerate,
        }
    }

    /// The same workload at these rates.
    #[cfg(test)]
    pub(super) fn at(mut self, rates: &Rates) -> Self {
        self.rates = *rates;
        self
    }

    /// Multiply-adds of a request.
    pub(super) fn macs(&self) -> f64 {
        self.layers.iter().map(|layer| layer.shape.macs() * layer.count as f64).sum()
    }

    /// The layers one by one.
    fn each(&self) -> impl Iterator<Item = (usize, &ConvShape)> {
        let repeated = |(index, layer): (usize, &NamedLayer)| (0..layer.count).map(move |_| index);
        let indices: Vec<usize> = self.layers.iter().enumerate().flat_map(repeated).collect();
        indices.into_iter().map(|index| (index, &self.layers[index].shape))
    }

    /// Seconds of a machine for the whole model: its layers and what lies between them.
    pub(super) fn service_s(&self) -> f64 {
        let worker = &self.rates.worker;
        let last = self.each().count().saturating_sub(1);
        let layer = |(at, (_, shape)): (usize, (usize, &ConvShape))| {
            let between = if at < last { shape.output_elems() as f64 * worker.packed_s } else { 0.0 };
            worker.seconds(&whole(shape)) - worker.call_s + between
        };
        self.each().enumerate().map(layer).sum::<f64>() + worker.call_s
    }

    /// Bytes of the model's input and of its output.
    pub(super) fn ends(&self) -> [f64; 2] {
        let first = self.layers.first().map_or(0, |layer| layer.shape.input_elems());
        let last = self.layers.last().map_or(0, |layer| layer.shape.output_elems());
        [first as f64 * self.element_bytes, last as f64 * self.element_bytes]
    }

    /// Requests a second that `machines` replicas without faults can answer at most, as far as the links let them.
    pub(super) fn capacity(&self, machines: usize) -> f64 {
        let most = self.ends().into_iter().fold(0.0, f64::max);
        (machines as f64 / self.service_s()).min(self.links[1] / most)
    }

    /// The request under `method`, hedged at the quantile `hedge` if it hedges.
    pub(super) fn plan(&self, method: LoadMethod, hedge: Option<f64>) -> Result<RequestPlan> {
        // Machines with coded filters hold those of one place in a group; others hold the whole model.
        let placement = if method.codes() { Placement::Group(self.group) } else { Placement::Any };
        let hedge = hedge.filter(|_| method.hedges());
        let mut plan = RequestPlan { steps: Vec::new(), fan_outs: Vec::new(), placement, hedge };
        match method {
            LoadMethod::Local => plan.push_master(self.local_s()),
            LoadMethod::Replicas | LoadMethod::ReplicasHedged | LoadMethod::ReplicasDouble => {
                let [up_bytes, down_bytes] = self.ends();
                plan.fan_outs.push(FanOut {
                    parts: 1,
                    needed: 1,
                    copies: if method == LoadMethod::ReplicasDouble { 2 } else { 1 },
                    up_bytes,
                    down_bytes,
                    work_s: self.service_s(),
                    filter_bytes: 0.0,
                    shares_input: false,
                    layers: self.each().count(),
                });
                plan.steps.push(Step::FanOut(0));
            }
            _ => self.divided(method, &mut plan)?,
        }
        Ok(plan)
    }

    /// Seconds of the master for the whole model.
    pub(super) fn local_s(&self) -> f64 {
        let last = self.each().count().saturating_sub(1);
        let layer = |(at, (_, shape)): (usize, (usize, &ConvShape))| {
            self.layer_local_s(shape) + if at < last { self.between_s(shape) } else { 0.0 }
        };
        self.each().enumerate().map(layer).sum()
    }

    /// Seconds of the master for one layer.
    fn layer_local_s(&self, shape: &ConvShape) -> f64 {
        let host = &self.rates.host;
        host.thread.seconds(&whole(shape)) / host.parallel.max(1.0)
    }

    /// Seconds of the master for what lies between a layer and the next: each output element is touched once.
    fn between_s(&self, shape: &ConvShape) -> f64 {
        shape.output_elems() as f64 * self.rates.host.decode_elem_s
    }

    fn divided(&self, method: LoadMethod, plan: &mut RequestPlan) -> Result<()> {
        // Seconds before, the step on machines, seconds after; or the seconds of the master alone.
        let mut ways = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            ways.push(self.layer(method, &layer.shape, plan)?);
        }
        let last = self.each().count().saturating_sub(1);
        for (at, (index, shape)) in self.each().enumerate() {
            match ways[index] {
                Way::Master => plan.push_master(self.layer_local_s(shape)),
                Way::Machines { before_s, fan_out, after_s } => {
                    plan.push_master(before_s);
                    plan.steps.push(Step::FanOut(fan_out));
                    plan.push_master(after_s);
                }
            }
            if at < last {
                plan.push_master(self.between_s(shape));
            }
        }
        Ok(())
    }

    fn layer(&self, method: LoadMethod, shape: &ConvShape, plan: &mut RequestPlan) -> Result<Way> {
        let kind = if method.codes() { CodeKind::Crme } else { CodeKind::Uncoded };
        let tolerate = if method.codes() { self.tolerate } else { 0 };
        // The planner's rates include the links: a machine's own, or its share of the master's.
        let mut seen = self.rates;
        let [machine, master] = self.links;
        let element_s = self.element_bytes * (1.0 / machine).max(self.group as f64 / master);
        seen.worker.call_s += 2.0 * self.latency_s;
        seen.worker.upload_s += element_s;
        seen.worker.download_s += element_s;
        let ((k_a, k_b), predicted) = choose_partitions::<f32>(shape, kind, self.group, tolerate, &seen)?;
        if method == LoadMethod::Planned && self.layer_local_s(shape) <= predicted.total_s() {
            return Ok(Way::Master);
        }
        let parts = if method.codes() { self.group } else { k_a * k_b };
        let code = Code::new(kind, k_a, k_b, parts)?;
        let subtask = subtask_shape(shape, &code)?;
        let prediction = self.rates.predict::<f32>(shape, &code)?;
        let host = &self.rates.host;
        plan.fan_outs.push(FanOut {
            parts,
            needed: code.recovery_threshold(),
            copies: 1,
            up_bytes: subtask.upload_elems() as f64 * self.element_bytes,
            down_bytes: subtask.download_elems() as f64 * self.element_bytes,
            work_s: self.rates.worker.seconds(&Work::of(&subtask)),
            // Uncoded machines hold whole filters, as replicas do.
            filter_bytes: if method.codes() {
                subtask.filter_elems() as f64 * self.element_bytes
            } else {
                0.0
            },
            shares_input: code.shares_slabs(),
            layers: 1,
        });
        Ok(Way::Machines {
            before_s: prediction.encode_s + host.layer_s + host.subtask_s * parts as f64,
            fan_out: plan.fan_outs.len() - 1,
            after_s: prediction.decode_s,
        })
    }
}

/// How one layer is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    Master,
    Machines { before_s: f64, fan_out: usize, after_s: f64 },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::resolve;

    fn workload(model: &str, change: impl FnOnce(&mut LoadSpec)) -> Workload {
        let mut spec = LoadSpec::default();
        change(&mut spec);
        Workload::new(resolve(model).unwrap(), &spec)
    }

    #[test]
    fn a_replica_takes_the_time_of_its_multiply_adds() {
        let vgg = workload("vgg16", |_| {});
        let ideal = vgg.macs() / 30e9;
        // Winograd's algorithm saves multiply-adds; staging and packing come on top.
        assert!((0.4..1.2).contains(&(vgg.service_s() / ideal)), "{} of {ideal}", vgg.service_s());
        let half = workload("vgg16", |spec| spec.machines.mac_rate = 15.0);
        assert!((half.service_s() / vgg.service_s() - 2.0).abs() < 0.01);
        // Two cores of the same kind are twice as fast.
        assert!((vgg.service_s() / vgg.local_s() - 2.0).abs() < 0.05);
        assert!((vgg.capacity(8) - 8.0 / vgg.service_s()).abs() < 1e-9);
        // A slow link is the limit: 602 kB of input at 125 kB/s.
        let slow = workload("vgg16", |spec| spec.master.link_mbit = 1.0);
        assert!((slow.capacity(8) - 125e3 / (3.0 * 224.0 * 224.0 * 4.0)).abs() < 1e-3);
    }

    #[test]
    fn coded_subtasks_are_a_share_of_the_layer_and_planned_ones_stay_where_links_are_slow() {
        let vgg = workload("vgg16", |_| {});
        let crme = vgg.plan(LoadMethod::Crme, None).unwrap();
        assert_eq!(crme.steps.iter().filter(|step| matches!(step, Step::FanOut(_))).count(), 13);
        assert!(crme.fan_outs.iter().all(|fan| fan.parts == 8 && fan.needed == 6));
        let work: f64 = crme.steps.iter().map(|step| work_of(&crme, *step)).sum();
        let over = 8.0 * work / vgg.service_s();
        // n / delta = 8/6 of the work, and more staging.
        assert!((1.25..2.0).contains(&over), "{over}");
        let uncoded = vgg.plan(LoadMethod::Uncoded, None).unwrap();
        assert!(uncoded.fan_outs.iter().all(|fan| fan.needed == fan.parts));
        assert_eq!(uncoded.hedge, None);
        assert_eq!(vgg.plan(LoadMethod::UncodedHedged, Some(0.9)).unwrap().hedge, Some(0.9));
        let slow = workload("vgg16", |spec| {
            spec.machines.link_mbit = 1.0;
            spec.master.link_mbit = 1.0;
        });
        let planned = slow.plan(LoadMethod::Planned, None).unwrap();
        assert!(planned.fan_outs.is_empty() && planned.steps.len() == 1, "{planned:?}");
        let fast = workload("vgg16", |spec| {
            spec.machines.link_mbit = 1e6;
            spec.master.link_mbit = 1e6;
        });
        assert!(fast.plan(LoadMethod::Planned, None).unwrap().fan_outs.len() > 5);
    }

    fn work_of(plan: &RequestPlan, step: Step) -> f64 {
        match step {
            Step::Master(_) => 0.0,
            Step::FanOut(index) => plan.fan_outs[index].work_s,
        }
    }
}
