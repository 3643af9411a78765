//! The remote workers of a pool file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fcdcc::cluster::{Cluster, ClusterOptions, MachineCheck, Refused, Seats, Security};

use super::{ClusterEntry, Console, Error, Path, PoolFile, Result, WireFormat, Worker, WorkerEntry};

/// The clusters of this process by pool file. A command that makes several pools from one file opens the cluster once.
static OPENED: Mutex<BTreeMap<PathBuf, Cluster>> = Mutex::new(BTreeMap::new());

fn opened(path: &Path, options: &ClusterOptions) -> Result<Cluster> {
    let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = all.get(path) {
        return Ok(cluster.clone());
    }
    let cluster = Cluster::open(options)?;
    all.insert(path.to_owned(), cluster.clone());
    Ok(cluster)
}

/// The clusters that this process has opened.
#[cfg(all(feature = "metrics", feature = "onnx"))]
pub(crate) fn clusters() -> Vec<Cluster> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

/// The machines that remote workers of a pool file name.
fn named(entries: &[WorkerEntry]) -> impl Iterator<Item = String> {
    entries.iter().filter_map(|entry| match entry {
        WorkerEntry::Remote { name, .. } => name.clone(),
        WorkerEntry::Cpu { .. } | WorkerEntry::Gpu { .. } => None,
    })
}

/// How the master of a pool file takes part in its cluster.
fn options(cluster: &ClusterEntry, path: &Path, entries: &[WorkerEntry]) -> Result<ClusterOptions> {
    let tls = cluster.tls.as_ref().map(|tls| tls.beside(path));
    Ok(ClusterOptions {
        cluster: cluster.name.clone(),
        listen: cluster.listen.parsed()?,
        connect: cluster.connect.parsed()?,
        security: Security { tls, insecure: cluster.insecure, viewers: cluster.viewers.clone() },
        machines: cluster.machines.iter().cloned().chain(named(entries)).collect(),
    })
}

/// A cluster as `fcdcc cluster check` found it.
pub(crate) struct Checked {
    pub(crate) cluster: String,
    pub(crate) places: String,
    pub(crate) machines: Vec<MachineCheck>,
    /// When this side's certificate ends, in seconds since 1970.
    pub(crate) certificate_end: Option<i64>,
}

/// Checks the machines of the pool file at `path`, within about `limit`.
pub(crate) fn check(path: &Path, limit: Duration) -> Result<Checked> {
    let file: PoolFile = crate::network::read_toml(path, "a pool file")?;
    let Some(cluster) = file.cluster else {
        return Err(Error::File {
            path: path.display().to_string(),
            cause: "has no [cluster]: name a pool file with remote workers".to_owned(),
            input: true,
        });
    };
    let options = options(&cluster, path, &file.worker)?;
    let certificate_end = options.security.certificate_end()?;
    let opened = Cluster::open(&options)?;
    let mut machines: Vec<String> = named(&file.worker).chain(cluster.machines).collect();
    machines.sort();
    machines.dedup();
    Ok(Checked {
        cluster: cluster.name,
        places: opened.places().join(", "),
        machines: opened.check(&machines, limit),
        certificate_end,
    })
}

/// The remote workers of a pool file, in groups.
pub(super) struct Remotes {
    groups: std::vec::IntoIter<Vec<Box<dyn Worker>>>,
    places: String,
    wait: Duration,
    /// Names of the workers that have not joined.
    missing: Vec<String>,
    wanted: usize,
    /// Sentences on machines that were not taken, and on those that do not take this master.
    refused: Vec<String>,
}

impl Remotes {
    /// Opens the cluster and waits for its machines. `wire` replaces the formats in the file.
    pub(super) fn open(
        cluster: &ClusterEntry,
        path: &Path,
        entries: &[WorkerEntry],
        spare: usize,
        wire: Option<WireFormat>,
        console: Console,
    ) -> Result<Self> {
        let seats: Vec<Seats> = entries
            .iter()
            .filter_map(|entry| match entry {
                WorkerEntry::Remote { name, count, wire: own, .. } => {
                    let wire = wire.or(*own).unwrap_or(cluster.wire);
                    Some(Seats { machine: name.clone(), count: *count, wire })
                }
                WorkerEntry::Cpu { .. } | WorkerEntry::Gpu { .. } => None,
            })
            .collect();
        for seat in &seats {
            super::check_count(seat.count.unwrap_or(1))?;
        }
        let opened = opened(path, &options(cluster, path, entries)?)?;
        let places = opened.places().join(", ");
        let groups = {
            let bar = super::super::progress::Bar::new(console, "joining");
            bar.steps(0, seats.len(), &places);
            opened.workers_of_each(&seats, cluster.wait, spare)
        };
        let all = || groups.iter().flatten();
        let missing = all().filter(|w| w.unavailable_reason().is_some()).map(|w| w.info().name).collect();
        for info in all().filter(|w| w.unavailable_reason().is_none()).map(|w| w.info()) {
            console.notice(format_args!("{}: {} ({})", info.name, info.host, info.device));
        }
        let wanted = all().count();
        let refused = opened.refused().into_iter();
        let refused = refused.map(|Refused { name, why }| format!("machine {name} was refused: {why}"));
        let refused_by = opened.refused_by().into_iter();
        let refused_by = refused_by.map(|Refused { name, why }| format!("{name} refuses this master: {why}"));
        let refused = refused.chain(refused_by).collect();
        Ok(Self { groups: groups.into_iter(), places, wait: cluster.wait, missing, wanted, refused })
    }

    pub(super) fn next_group(&mut self) -> Vec<Box<dyn Worker>> {
        self.groups.next().unwrap_or_default()
    }

    /// Names the machines that were refused and the workers that have not joined, also with `--quiet`.
    pub(super) fn name_missing(&self) {
        for refusal in &self.refused {
            crate::say(format_args!("notice: {refusal}"));
        }
        if !self.missing.is_empty() {
            crate::say(format_args!(
                "notice: {} of {} remote workers joined at {}; missing: {}; they may come later",
                self.wanted - self.missing.len(),
                self.wanted,
                self.places,
                self.missing.join(", ")
            ));
        }
    }

    /// The error of a pool without any workers.
    pub(super) fn none_joined(&self) -> Error {
        let none = format!("none joined at {} within {:?}", self.places, self.wait);
        Error::Unavailable {
            what: format!("every remote worker ({})", [&[none][..], &self.refused].concat().join("; ")),
            help: "start `fcdcc worker` on the machines (see docs/cluster.md), or raise `wait` in [cluster]"
                .into(),
        }
    }
}
