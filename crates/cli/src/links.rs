//! The rates of links to other machines: measured, kept by machine, and checked at every start by one short transfer.

use std::collections::BTreeMap;

use fcdcc::array::DType;
use fcdcc::planner::{LinkRates, Network, WorkerRates, calibrate_link, calibrate_network, links_agree};
use fcdcc::worker::{WorkerInfo, WorkerKind};
use fcdcc::{Result, Worker};

use super::Console;
use super::kept_rates::{Cache, Calibrate, Measuring, key, over_wire};
use super::progress::Bar;

/// Ratio of predicted times above which the user is told that other machines make a model slower.
const SLOWER: f64 = 1.1;

/// The links to the machines of a pool's workers.
pub(crate) struct Links {
    machines: Vec<Machine>,
    /// Those of the link to each machine.
    rates: Vec<LinkRates>,
    pub(crate) network: Network,
    dtype: DType,
    /// Whether they were measured now.
    pub(crate) is_new: bool,
}

/// A machine that has joined.
struct Machine {
    name: String,
    /// Its first worker.
    first: usize,
    workers: usize,
    wire: String,
    device: WorkerRates,
}

impl Links {
    /// The links to all machines that have joined and whose devices have rates (`device`); `None` if there are none, or if
    /// their links are not known and are not to be measured.
    ///
    /// # Errors
    /// The worker's error if links must be measured and cannot be.
    pub(crate) fn find(
        workers: &mut [Box<dyn Worker>],
        infos: &[WorkerInfo],
        dtype: DType,
        device: &dyn Fn(&WorkerInfo) -> Option<WorkerRates>,
        measuring: Measuring,
        known: &Cache,
        console: Console,
    ) -> Result<Option<Self>> {
        let machines = joined(workers, infos, dtype, device);
        if machines.is_empty() {
            return Ok(None);
        }
        let mut firsts: Vec<&mut dyn Worker> = workers
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| machines.iter().any(|machine| machine.first == *at))
            .map(|(_, worker)| -> &mut dyn Worker { worker.as_mut() })
            .collect();
        let kept = kept(&machines, dtype, known).filter(|_| measuring.how == Calibrate::Auto);
        if let Some((links, network)) = kept {
            let mut agree = || match links_agree(&mut firsts, &links, dtype, &network) {
                Ok(agree) => agree,
                Err(error) => {
                    tracing::warn!(%error, "the links to other machines could not be checked");
                    true
                }
            };
            if !measuring.may_measure() || agree() {
                return Ok(Some(Self { machines, rates: links, network, dtype, is_new: false }));
            }
            tracing::info!("links to other machines are not as they were: measured again");
        }
        if !measuring.may_measure() {
            return Ok(None);
        }
        match measured(&mut firsts, &machines, dtype, console) {
            Ok((rates, network)) => Ok(Some(Self { machines, rates, network, dtype, is_new: true })),
            // Runs tolerate machines that fail, and the planner then goes without their links.
            Err(error) if measuring.how == Calibrate::Auto => {
                tracing::warn!(%error, "the links to other machines could not be measured");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The link to a machine.
    pub(crate) fn to(&self, machine: &str) -> Option<LinkRates> {
        self.machines.iter().position(|known| known.name == machine).map(|at| self.rates[at])
    }

    pub(crate) fn add_to(&self, cache: &mut Cache) {
        for (machine, link) in self.machines.iter().zip(&self.rates) {
            cache.links.insert(machine.key(self.dtype), *link);
        }
        cache.networks.insert(of_all(&self.machines, self.dtype), self.network);
    }
}

impl Machine {
    /// What its link is kept under.
    fn key(&self, dtype: DType) -> String {
        key(&format!("link to {}{}", self.name, self.wire), dtype)
    }
}

/// What the links of these machines together are kept under.
fn of_all(machines: &[Machine], dtype: DType) -> String {
    let mut names: Vec<String> =
        machines.iter().map(|machine| format!("{}{}", machine.name, machine.wire)).collect();
    names.sort_unstable();
    key(&format!("links to {}", names.join(", ")), dtype)
}

fn kept(machines: &[Machine], dtype: DType, known: &Cache) -> Option<(Vec<LinkRates>, Network)> {
    let workers = machines.iter().map(|machine| machine.workers).sum();
    let network = Network { workers, ..*known.networks.get(&of_all(machines, dtype))? };
    let links = machines.iter().map(|machine| known.links.get(&machine.key(dtype)).copied());
    Some((links.collect::<Option<_>>()?, network))
}

fn measured(
    firsts: &mut [&mut dyn Worker],
    machines: &[Machine],
    dtype: DType,
    console: Console,
) -> Result<(Vec<LinkRates>, Network)> {
    let bar = Bar::new(console, "measuring");
    let mut links = Vec::with_capacity(machines.len());
    for (at, (worker, machine)) in firsts.iter_mut().zip(machines).enumerate() {
        bar.steps(at, machines.len() + 1, &format!("the link to {}", machine.name));
        links.push(calibrate_link(*worker, dtype, &machine.device)?);
    }
    bar.steps(machines.len(), machines.len() + 1, "all links at once");
    let workers = machines.iter().map(|machine| machine.workers).sum();
    let network = calibrate_network(firsts, &links, dtype, workers)?;
    Ok((links, network))
}

/// What to say of layers that take longer on workers elsewhere than on this machine, by predictions in seconds; `None` if they
/// do not.
pub(crate) fn slower_than_here(planned_s: f64, local_s: f64) -> Option<String> {
    let times = planned_s / local_s;
    (times > SLOWER).then(|| {
        format!(
            "over these links the layers take {times:.1} times as long as on this machine alone: {:.0} ms predicted against \
             {:.0} ms; --auto leaves layers here where that is faster",
            planned_s * 1e3,
            local_s * 1e3
        )
    })
}

/// The machines of remote workers, in the order of their first workers.
fn joined(
    workers: &[Box<dyn Worker>],
    infos: &[WorkerInfo],
    dtype: DType,
    device: &dyn Fn(&WorkerInfo) -> Option<WorkerRates>,
) -> Vec<Machine> {
    let mut machines: BTreeMap<&str, Machine> = BTreeMap::new();
    for (at, (worker, info)) in workers.iter().zip(infos).enumerate() {
        let Some(device) = device(info) else { continue };
        if info.kind != WorkerKind::Remote || worker.unavailable_reason().is_some() {
            continue;
        }
        let (name, wire) = (info.host.clone(), over_wire(info, dtype));
        let new = Machine { name, first: at, workers: 0, wire, device };
        machines.entry(&info.host).or_insert(new).workers += 1;
    }
    let mut machines: Vec<Machine> = machines.into_values().collect();
    machines.sort_unstable_by_key(|machine| machine.first);
    machines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use fcdcc::array::Values;
    use fcdcc::planner::Rates;
    use fcdcc::worker::{CpuWorker, FilterKey, SubtaskShape, Task};

    use super::*;

    /// A worker of another machine. Its link takes `nanos` nanoseconds for an element.
    struct Away {
        inner: CpuWorker,
        host: &'static str,
        nanos: Arc<AtomicUsize>,
    }

    impl Worker for Away {
        fn info(&self) -> WorkerInfo {
            let mut info = self.inner.info();
            (info.kind, info.host) = (WorkerKind::Remote, self.host.to_owned());
            info
        }

        fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
            self.inner.install(key, shape, banks)
        }

        fn remove(&mut self, key: FilterKey) {
            self.inner.remove(key);
        }

        fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
            let mut elems = task.slabs.len();
            let result = self.inner.execute(task, &mut |index, values| {
                elems += values.len();
                emit(index, values);
            });
            std::thread::sleep(Duration::from_nanos((elems * self.nanos.load(Ordering::SeqCst)) as u64));
            result
        }
    }

    #[test]
    fn links_are_kept_by_machine_and_measured_again_when_they_change() {
        let nanos = Arc::new(AtomicUsize::new(500));
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        for host in ["beta", "alpha", "alpha", "beta"] {
            let inner = CpuWorker::new(host, 1);
            workers.push(Box::new(Away { inner, host, nanos: Arc::clone(&nanos) }));
        }
        workers.push(Box::new(CpuWorker::new("here", 1)));
        let infos: Vec<WorkerInfo> = workers.iter().map(|worker| worker.info()).collect();
        let device = |_: &WorkerInfo| Some(Rates::default().worker);
        let console = Console::new(true);
        let mut find = |how, unknown, known: &Cache| {
            let measuring = Measuring { how, unknown };
            Links::find(&mut workers, &infos, DType::F32, &device, measuring, known, console).unwrap()
        };
        let mut known = Cache::default();
        assert!(find(Calibrate::Auto, false, &known).is_none(), "nothing is known");
        let first = find(Calibrate::Auto, true, &known).unwrap();
        assert!(first.is_new && first.to("here").is_none());
        assert_eq!((first.network.machines, first.network.workers), (2, 4));
        let slow = first.to("alpha").unwrap().upload_s;
        assert!(slow > 3e-7 && first.to("beta").unwrap().download_s > 3e-7, "{slow}");
        first.add_to(&mut known);
        let again = find(Calibrate::Auto, true, &known).unwrap();
        assert!(!again.is_new && again.to("alpha") == first.to("alpha"), "it was measured again");
        assert!(find(Calibrate::Always, true, &known).unwrap().is_new);
        // The link became twenty times as fast.
        nanos.store(25, Ordering::SeqCst);
        assert!(!find(Calibrate::Auto, false, &known).unwrap().is_new, "nothing is to be measured");
        let faster = find(Calibrate::Auto, true, &known).unwrap();
        assert!(faster.is_new && faster.to("alpha").unwrap().upload_s < slow / 5.0);
    }

    #[test]
    fn a_plan_that_is_slower_than_this_machine_is_told() {
        assert_eq!(slower_than_here(1.05, 1.0), None);
        let text = slower_than_here(2.0, 0.25).unwrap();
        assert!(text.contains("8.0 times") && text.contains("2000 ms") && text.contains("--auto"), "{text}");
    }
}
