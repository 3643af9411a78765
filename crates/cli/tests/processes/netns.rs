//! LeNet-5 over four machines with realistic failures: network namespaces with their own addresses, whose processes are
//! killed, whose cables are unplugged, and whose links are slow, distant or cut.
//!
//! If namespaces cannot be created (this requires root and iproute2), every test is shown as ignored, even with `CI=true`,
//! with a notice. All traffic stays within the namespaces.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashSet;
use std::time::Duration;

use crate::net::{Net, Process, until};
use fcdcc_test_support::folder::Folder;
use fcdcc_test_support::relative_l2;
use libtest_mimic::{Failed, Trial};
use ndarray::ArrayD;
use serde_json::Value;

type Outcome = Result<(), Failed>;

const FCDCC: &str = env!("CARGO_BIN_EXE_fcdcc");
const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];
/// Coded f32 logits of three layers at condition numbers below 1000 are a hundred times more accurate; one wrong logit
/// exceeds it ten times.
const EXACT: f64 = 1e-4;
/// Deadline of a layer. Layers take tens of milliseconds; waiting for a lease, or for TCP to give up, takes longer.
const DEADLINE: Duration = Duration::from_secs(3);
/// Limit for what takes a few seconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);
/// A silent machine is given up after 4 s; closing its connection may take 10 s more.
const GIVEN_UP: Duration = Duration::from_secs(25);

/// Five machines, the demo's model, and its local outputs for all 450 digits.
struct Site {
    net: Net,
    folder: Folder,
    want: ArrayD<f32>,
}

/// A worker process as the cluster lists it.
#[derive(Debug)]
struct Seen {
    boot: String,
    /// Number of completed tasks; `None` if the machine does not answer.
    done: Option<u64>,
}

impl Site {
    fn new(others: &[&'static str]) -> Result<Self, Failed> {
        let net = Net::new(&[&["master"], &WORKERS[..], others].concat())?;
        let folder = Folder::empty();
        let local = "run lenet5.onnx --backend cpu --code uncoded --workers 2 --input digits.npy --output local.npy \
                     --shape 90,1,32,32 --quiet";
        for args in ["demo --backend cpu --write . --quiet --fault 0:delay=0ms", local] {
            let said = folder.run(args);
            assert_eq!((said.status, said.err.as_str()), (0, ""), "{args}");
        }
        let want = folder.load("local.npy");
        Ok(Self { net, folder, want })
    }

    fn meeting_point(&self) -> String {
        format!("tcp/{}:7447", self.net.address("master"))
    }

    /// Writes pool.toml: two devices of each machine, delayed by these milliseconds before each task.
    fn pool(&self, delays: [u64; 4], insecure: bool, wait: &str) {
        let seat = |(name, delay): (&&str, u64)| {
            format!(
                "[[worker]]\nkind = \"remote\"\nname = \"{name}\"\ncount = 2\nfault = \"delay={delay}ms\"\n"
            )
        };
        let seats: Vec<String> = WORKERS.iter().zip(delays).map(seat).collect();
        let (listen, seats) = (self.meeting_point(), seats.concat());
        let text =
            format!("[cluster]\nlisten = \"{listen}\"\ninsecure = {insecure}\nwait = \"{wait}\"\n{seats}");
        self.folder.write("pool.toml", text);
    }

    fn worker(&self, name: &str, endpoint: &str) -> Process {
        let args = format!("worker --connect {endpoint} --name {name} --backend cpu --workers 2");
        self.start(name, FCDCC, &args)
    }

    fn workers(&self) -> Vec<Process> {
        WORKERS.iter().map(|name| self.worker(name, &self.meeting_point())).collect()
    }

    fn start(&self, machine: &str, program: &str, args: &str) -> Process {
        let mut command = self.net.command(machine, program);
        command.args(args.split_whitespace()).current_dir(self.folder.path("."));
        command.env("FCDCC_CACHE", env!("CARGO_TARGET_TMPDIR")).env_remove("RUST_LOG");
        Process::start(&mut command, self.folder.path(&format!("{machine}.log")))
    }

    /// Starts the model on all digits over the pool, `batch` digits at a time.
    fn run(&self, batch: usize) -> Process {
        let args = format!(
            "run lenet5.onnx --input digits.npy --shape {batch},1,32,32 --pool pool.toml --workers 8 --tolerate 4 \
             --deadline {}s --compare --output y.npy --report r.json",
            DEADLINE.as_secs()
        );
        self.start("master", FCDCC, &args)
    }

    /// Waits for the end of a run, which must be exact at every layer; returns its report.
    fn exact(&self, mut run: Process, limit: Duration) -> Result<Value, Failed> {
        let status = run.end(limit)?;
        if !status.success() {
            return Err(format!("{status}: {}", run.said()).into());
        }
        let report = self.folder.json("r.json");
        let deviation = report["compare"][0]["relative_l2"].as_f64().unwrap();
        assert!(deviation < EXACT, "{deviation:e} from the uncoded run");
        let mut got: ArrayD<f32> = self.folder.load("y.npy");
        agree(&got, &self.want)?;
        // Negative control: a difference is detected.
        got[[7, 3]] += 1.0;
        assert!(agree(&got, &self.want).is_err(), "one wrong logit passes");
        for (at, layer) in layers(&report).iter().enumerate() {
            let (took, completion) = (layer["total_ms"].as_f64().unwrap(), layer["completion"].as_str());
            let by_workers = ["exact", "exact-after-redispatch"].contains(&completion.unwrap());
            let in_time = Duration::from_secs_f64(took / 1e3) < DEADLINE;
            assert!(in_time && by_workers, "layer {at} took {took} ms: {layer}, {}", run.said());
        }
        Ok(report)
    }

    /// The machine as the cluster lists it; `None` if it is not listed.
    fn seen(&self, name: &str) -> Option<Seen> {
        let args = format!("cluster --connect {} --wait 500ms --json", self.meeting_point());
        let out = self.net.command("master", FCDCC).args(args.split_whitespace()).output().unwrap();
        let listing: Value = serde_json::from_slice(&out.stdout).ok()?;
        let machine = listing["machines"].as_array()?.iter().find(|machine| machine["name"] == name)?;
        let counts = machine["devices"].as_array();
        let done = counts.map(|devices| devices.iter().filter_map(|device| device["done"].as_u64()).sum());
        Some(Seen { boot: machine["boot"].as_str()?.to_owned(), done })
    }

    /// Waits until a machine has completed more than `tasks` tasks.
    fn works(&self, name: &str, tasks: u64) -> Result<Seen, Failed> {
        let works = || self.seen(name).filter(|seen| seen.done.is_some_and(|done| done > tasks));
        Ok(until(&format!("{name} to do more than {tasks} tasks"), SOON, works)?)
    }

    /// Waits until a machine is no longer listed, while the run continues.
    fn is_gone(&self, name: &str) -> Outcome {
        let gone = || self.seen("w3").filter(|_| self.seen(name).is_none());
        Ok(until(&format!("{name} to be given up"), GIVEN_UP, gone).map(|_| ())?)
    }
}

/// The same classes, and logits that are equal up to rounding.
fn agree(got: &ArrayD<f32>, want: &ArrayD<f32>) -> Outcome {
    let classes = |logits: &ArrayD<f32>| -> Vec<Option<usize>> {
        let largest =
            |row: ndarray::ArrayViewD<f32>| (0..row.len()).max_by(|a, b| row[[*a]].total_cmp(&row[[*b]]));
        logits.outer_iter().map(largest).collect()
    };
    let error = relative_l2(got.as_slice().unwrap(), want.as_slice().unwrap());
    let same = classes(got) == classes(want);
    if error < EXACT && same { Ok(()) } else { Err(format!("off by {error:e}, same classes: {same}").into()) }
}

fn layers(report: &Value) -> &[Value] {
    report["layers"].as_array().unwrap()
}

/// The machines with a result that was used in any of these layers.
fn used(layers: &[Value]) -> HashSet<&str> {
    let workers = layers.iter().flat_map(|layer| layer["workers"].as_array().unwrap());
    let used = workers.filter(|worker| worker["outcome"] == "used");
    used.map(|worker| worker["worker"].as_str().unwrap().split('/').next().unwrap()).collect()
}

fn nobody_listens_in_the_open_by_accident() -> Outcome {
    let site = Site::new(&[])?;
    for (insecure, says) in [(false, "without mutual TLS"), (true, "none joined")] {
        site.pool([0; 4], insecure, "10ms");
        let mut run = site.run(90);
        assert_eq!(run.end(SOON)?.code(), Some(2), "{}", run.said());
        assert!(run.said().contains(says), "{}", run.said());
    }
    let mut worker = site.start("w1", FCDCC, "worker --listen 0.0.0.0:7447 --backend cpu");
    assert_eq!(worker.end(SOON)?.code(), Some(2), "{}", worker.said());
    assert!(worker.said().contains("without mutual TLS"), "{}", worker.said());
    Ok(())
}

fn two_of_four_machines_are_lost_and_come_back() -> Outcome {
    let site = Site::new(&[])?;
    site.pool([40; 4], true, "10s");
    let mut workers = site.workers();
    // 225 batches of three layers, each of which waits 40 ms.
    let run = site.run(2);
    // At most two tasks of each machine per layer.
    let before = WORKERS.map(|name| site.works(name, 40));
    let [first, second] = [&before[0], &before[1]].map(|seen| seen.as_ref().unwrap());
    workers[0].kill();
    site.net.unplug("w2");
    site.is_gone("w1")?;
    // Packets to it vanish, without an error to the sender.
    assert!(site.seen("w2").is_some_and(|seen| seen.done.is_none()));
    site.is_gone("w2")?;
    workers[0] = site.worker("w1", &site.meeting_point());
    site.net.plug("w2");
    assert_ne!(site.works("w1", 5)?.boot, first.boot);
    assert_eq!(site.works("w2", second.done.unwrap() + 20)?.boot, second.boot);
    let report = site.exact(run, Duration::from_mins(1))?;
    let layers = layers(&report);
    assert_eq!(used(&layers[..15]), HashSet::from(WORKERS), "before anything is lost");
    assert_eq!(used(&layers[layers.len() - 30..]), HashSet::from(WORKERS), "long after w1 and w2 came back");
    let without = |layers: &[Value]| used(layers).is_disjoint(&HashSet::from(["w1", "w2"]));
    assert!(layers.windows(60).any(without), "w1 and w2 were never both gone");
    Ok(())
}

fn a_slow_link_costs_its_own_share_alone() -> Outcome {
    let site = Site::new(&[])?;
    site.pool([20; 4], true, "10s");
    let _workers = site.workers();
    // 30 batches with tasks of about 40 KB: 90 layers with two tasks per machine would take a minute over the slow link.
    let fast = site.exact(site.run(15), SOON)?;
    site.net.limit("w3", "1mbit")?;
    let slow = site.exact(site.run(15), SOON)?;
    let [before, after] = [&fast, &slow].map(|report| report["total_ms"].as_f64().unwrap());
    assert!(after < 2.0 * before + 1000.0, "{after} ms where {before} ms were enough without");
    let others = HashSet::from(["w1", "w2", "w4"]);
    assert!(used(layers(&slow)).is_superset(&others) && used(layers(&fast)).contains("w3"));
    let waited = site.net.held_back("w3");
    assert!(waited > 100, "the limit held back {waited} packets");
    Ok(())
}

fn a_long_lossy_way_delays_and_a_cut_is_mended() -> Outcome {
    let site = Site::new(&["relay"])?;
    // The others are delayed, so that results of w4 are used in spite of its distance.
    site.pool([100, 100, 100, 0], true, "10s");
    let between = format!("{}:7447 {}:7447", site.net.address("relay"), site.net.address("master"));
    let mut command = site.net.command("relay", std::env::current_exe().unwrap());
    let mut relay =
        Process::start(command.env(crate::relay::VARIABLE, between), site.folder.path("relay.log"));
    let mut workers = site.workers();
    workers[3] = site.worker("w4", &format!("tcp/{}:7447", site.net.address("relay")));
    let run = site.run(15);
    let before = site.works("w4", 10)?;
    relay.tell(crate::relay::CUT);
    let after = site.works("w4", before.done.unwrap() + 20)?;
    assert_eq!(after.boot, before.boot);
    let report = site.exact(run, Duration::from_secs(40))?;
    let layers = layers(&report);
    assert!([&layers[..30], &layers[60..]].iter().all(|part| used(part).contains("w4")));
    let latency = |name: &str| {
        let workers = layers.iter().flat_map(|layer| layer["workers"].as_array().unwrap());
        let own =
            workers.filter(|w| w["worker"].as_str().unwrap().starts_with(name) && w["outcome"] == "used");
        own.filter_map(|worker| worker["latency_ms"].as_f64()).fold(f64::INFINITY, f64::min)
    };
    assert!(latency("w4") >= 50.0, "{} ms over a way of 25 ms each", latency("w4"));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "tests that are not run must be seen")]
pub(crate) fn trials() -> Vec<Trial> {
    let probe = Net::new(&["probe"]);
    let limited = probe.as_ref().map_err(Clone::clone).and_then(|net| net.limit("probe", "1mbit"));
    let made = probe.map(drop);
    let lacks = [("network namespaces", &made), ("rate limits", &limited)];
    if let Some((what, Err(why))) = lacks.into_iter().find(|(_, able)| able.is_err()) {
        eprintln!("NOTICE: no {what}: tests over machines of their own are ignored ({why})");
    }
    let trial = |name: &str, able: &Result<(), String>, test: fn() -> Outcome| {
        Trial::test(format!("netns::{name}"), test).with_ignored_flag(able.is_err())
    };
    vec![
        trial("nobody listens in the open by accident", &made, nobody_listens_in_the_open_by_accident),
        trial(
            "two of four machines are lost and come back",
            &made,
            two_of_four_machines_are_lost_and_come_back,
        ),
        trial("a slow link costs its own share alone", &limited, a_slow_link_costs_its_own_share_alone),
        trial(
            "a long lossy way delays and a cut is mended",
            &made,
            a_long_lossy_way_delays_and_a_cut_is_mended,
        ),
    ]
}
