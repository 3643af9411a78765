//! A master in this process and worker processes, each behind a relay of its own, with layers that they compute.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fcdcc::cluster::{Cluster, ClusterOptions, Endpoint, Seats, Security};
use fcdcc::engine::WindowwiseLimit;
use fcdcc::scheduler::Outcome;
use fcdcc::{CodedConv, Completion, ConvParams, LayerOptions, Pool, WorkerId};
use fcdcc_test_support::fleet::{Process, SOON, pool_of};
use fcdcc_test_support::folder::Folder;
use fcdcc_test_support::layer::{Layer, options};
use fcdcc_test_support::relay::{Carries, Counts, Direction, Link, Relay};
use libtest_mimic::Failed;

use crate::site::{authority, free_port, holder};

/// Devices of each machine.
pub(crate) const DEVICES: usize = 2;
/// Deadline of a layer. Waiting for a lease (4 s) or for a connection to close (10 s) takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// The largest deviation of an output, as a fraction of the largest output. Coded f32 outputs at condition numbers below 1000
/// are ten times more accurate.
const EXACT: f64 = 1e-4;

/// How master and machines are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    /// With certificates on both sides.
    Quic,
}

/// See the module documentation. Machine `i` is called `m<i>`.
pub(crate) struct Star {
    // First, so that no worker waits for a machine while the rest ends.
    prepared: Vec<CodedConv<f32>>,
    pub(crate) layers: Vec<Layer<f32>>,
    pub(crate) pool: Pool,
    _cluster: Cluster,
    _machines: Vec<Process>,
    pub(crate) relays: Vec<Relay>,
    _certificates: Folder,
}

/// One run of a layer that was right.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) took: Duration,
    /// The machines whose results were used.
    pub(crate) used: BTreeSet<usize>,
    /// Whether it was decoded from results of workers.
    pub(crate) by_workers: bool,
    /// Where its time went, for messages.
    pub(crate) story: String,
}

/// The layers of all stars, with their partitions, of which four of eight subtasks are enough: one whose small slabs go with
/// the tasks, and one whose slabs go once to each machine.
fn layers() -> [(Layer<f32>, [usize; 2]); 2] {
    [
        (Layer::new(&[1, 4, 16, 16], &[16, 4, 3, 3], ConvParams::default().padding([1])), [4, 4]),
        (Layer::new(&[1, 12, 32, 32], &[32, 12, 3, 3], ConvParams::default()), [1, 8]),
    ]
}

/// The options of a layer with these partitions.
pub(crate) fn coded([k_a, k_b]: [usize; 2]) -> LayerOptions {
    // Every set is decoded by workers, also a badly conditioned one.
    LayerOptions { max_windowwise: WindowwiseLimit::Off, ..options(k_a, k_b) }.deadline(DEADLINE)
}

impl Star {
    /// Starts everything and prepares the layers; the links are `link` of each machine from the start.
    pub(crate) fn new(transport: Transport, machines: usize, link: impl Fn(usize) -> Link) -> Self {
        let certificates = Folder::empty();
        let names: Vec<String> = (0..machines).map(|at| format!("m{at}")).collect();
        let mut security = Security::default();
        if transport == Transport::Quic {
            let all: Vec<&str> = std::iter::once("master").chain(names.iter().map(String::as_str)).collect();
            authority(&certificates, "certs", &all);
            security.tls = Some(holder(&certificates, "master"));
        }
        let (scheme, carries) = match transport {
            Transport::Tcp => ("tcp", Carries::Streams),
            Transport::Quic => ("quic", Carries::Datagrams),
        };
        let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let endpoint = |at: SocketAddr| -> Endpoint { format!("{scheme}/{at}").parse().unwrap() };
        let cluster = Cluster::open(&ClusterOptions {
            listen: vec![endpoint(listen)],
            security,
            machines: names.clone(),
            ..ClusterOptions::default()
        })
        .unwrap();
        let relays: Vec<Relay> = (0..machines).map(|at| Relay::start(carries, listen, link(at))).collect();
        let start = |(name, relay): (&String, &Relay)| {
            let file = |name: &str| certificates.path(&format!("certs/{name}")).display().to_string();
            let mut arguments = vec!["--connect".to_owned(), endpoint(relay.address()).to_string()];
            let devices = DEVICES.to_string();
            arguments.extend(["--backend", "cpu", "--workers", &devices].map(str::to_owned));
            if transport == Transport::Quic {
                let [ca, certificate, key] =
                    ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")].map(|f| file(&f));
                for (option, path) in [("--ca", ca), ("--certificate", certificate), ("--key", key)] {
                    arguments.extend([option.to_owned(), path]);
                }
            }
            Process::start(name, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let processes = names.iter().zip(&relays).map(start).collect();
        let seats =
            |name: &String| Seats { machine: Some(name.clone()), count: Some(DEVICES), ..Seats::default() };
        let workers = cluster.workers(&names.iter().map(seats).collect::<Vec<_>>(), SOON);
        let missing: Vec<_> = workers.iter().filter_map(|worker| worker.unavailable_reason()).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let pool = pool_of(workers);
        let prepare = |(layer, partitions): (Layer<f32>, [usize; 2])| {
            let prepared = layer.prepare(&pool, coded(partitions)).unwrap();
            (prepared, layer)
        };
        let (prepared, layers) = layers().into_iter().map(prepare).unzip();
        Self {
            prepared,
            layers,
            pool,
            _cluster: cluster,
            _machines: processes,
            relays,
            _certificates: certificates,
        }
    }

    /// Another preparation of the first layer.
    pub(crate) fn prepare(&self, options: LayerOptions) -> CodedConv<f32> {
        self.layers[0].prepare(&self.pool, options).unwrap()
    }

    /// Runs every layer once. Each run must be right in every element, computed by workers, and end within its deadline.
    pub(crate) fn run(&self) -> Result<Vec<Ran>, Failed> {
        let ran = self.run_anywhere()?;
        match ran.iter().find(|ran| !ran.by_workers || ran.took >= DEADLINE) {
            None => Ok(ran),
            Some(ran) => Err(ran.story.as_str().into()),
        }
    }

    /// Runs every layer once. Each run must be right in every element.
    pub(crate) fn run_anywhere(&self) -> Result<Vec<Ran>, Failed> {
        let run = |(layer, prepared)| self.run_one(layer, prepared);
        self.layers.iter().zip(&self.prepared).map(run).collect()
    }

    fn run_one(&self, layer: &Layer<f32>, prepared: &CodedConv<f32>) -> Result<Ran, Failed> {
        let started = Instant::now();
        let run = prepared.run(layer.input.view())?;
        let (took, report) = (started.elapsed(), run.report);
        let mut output = run.output.into_raw_vec_and_offset().0;
        agree(&output, &layer.truth)?;
        // Negative control: one wrong element is noticed.
        output[7] += 0.1 * output.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        assert!(agree(&output, &layer.truth).is_err(), "a wrong element passes");
        let machine = |name: &str| name[1..name.find('/').unwrap()].parse::<usize>().unwrap();
        let used = report.workers.iter().filter(|worker| worker.outcome == Outcome::Used);
        let story = format!(
            "{took:?} (encode {:.0} ms, wait {:.0}, decode {:.0}), {}, hedged {}, redispatched {}, silent {:?}",
            report.encode_ms,
            report.wait_ms,
            report.decode_ms,
            report.completion.name(),
            report.hedged,
            report.redispatched,
            self.silent()
        );
        let by_workers = [Completion::Exact, Completion::ExactAfterRedispatch].contains(&report.completion);
        let used = used.map(|worker| machine(&worker.worker)).collect();
        Ok(Ran { took, used, by_workers, story })
    }

    /// Runs the layers again and again until `done`; returns all runs. Ends with an error after `limit`.
    pub(crate) fn run_until(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&[Ran]) -> bool,
    ) -> Result<Vec<Ran>, Failed> {
        let (end, mut all) = (Instant::now() + limit, Vec::new());
        loop {
            let ran = self.run()?;
            let is_done = done(&ran);
            all.extend(ran);
            if is_done {
                return Ok(all);
            }
            if Instant::now() > end {
                return Err(format!("{what}: not within {limit:?}").into());
            }
        }
    }

    /// Runs the layers for this long.
    pub(crate) fn run_for(&self, time: Duration) -> Result<Vec<Ran>, Failed> {
        let end = Instant::now() + time;
        self.run_until("the end", time + SOON, |_| Instant::now() >= end)
    }

    /// The machines that do not answer at present.
    pub(crate) fn silent(&self) -> BTreeSet<usize> {
        let silent = |at: usize| self.pool.health(WorkerId(at)).is_some_and(|health| health.silent);
        (0..self.pool.len()).filter(|at| silent(*at)).map(|at| at / DEVICES).collect()
    }

    /// What the relays of all machines counted in one direction.
    pub(crate) fn counts(&self, direction: Direction) -> Counts {
        let mut sum = Counts::default();
        for counts in self.relays.iter().map(|relay| relay.counts(direction)) {
            sum.came += counts.came;
            sum.left += counts.left;
            sum.lost += counts.lost;
            sum.cut += counts.cut;
            sum.delayed += counts.delayed;
            sum.duplicated += counts.duplicated;
            sum.reordered += counts.reordered;
            sum.split += counts.split;
        }
        sum
    }
}

/// Every element of both is equal up to rounding.
fn agree(got: &[f32], want: &[f32]) -> Result<(), Failed> {
    let largest = want.iter().fold(0.0_f64, |largest, value| largest.max(f64::from(value.abs())));
    if got.len() != want.len() {
        return Err(format!("{} elements where {} were expected", got.len(), want.len()).into());
    }
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - f64::from(*want)).abs();
        if off.is_nan() || off > EXACT * largest {
            return Err(format!("element {at} is {got} where {want} was expected").into());
        }
    }
    Ok(())
}
