//! The command as machines and masters of a cluster with certificates of `scripts/dev_ca.sh`, on loopback.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fcdcc::cluster::{Cluster, ClusterOptions, Security, Tls};
use fcdcc::conv::reference;
use fcdcc::{ConvParams, ConvShape};
use fcdcc_test_support::binary::repository;
use fcdcc_test_support::folder::{Folder, Said};
use fcdcc_test_support::relative_l2;
use serde_json::Value;
use zenoh::Wait;

/// f32 workers at condition numbers below 100.
pub(crate) const EXACT: f64 = 3e-5;
/// Limit for expected events; beyond it the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// So large that filters, slabs and results are sent on every connection.
pub(crate) const SHAPES: ([usize; 4], [usize; 4]) = ([4, 16, 64, 64], [32, 16, 3, 3]);
/// Number of runs of a layer in one set-up.
pub(crate) const RUNS: usize = 5;

/// A folder with the certificates of `names` in `certs`, and arrays.
pub(crate) struct Site {
    pub(crate) folder: Folder,
    pub(crate) truth: Vec<f32>,
    pub(crate) port: u16,
}

impl Site {
    pub(crate) fn new(names: &[&str]) -> Self {
        let folder = Folder::empty();
        let x = folder.random::<f32>("x.npy", &SHAPES.0, 1);
        let w = folder.random::<f32>("w.npy", &SHAPES.1, 2);
        let shape = ConvShape::new(&SHAPES.0, &SHAPES.1, &ConvParams::default()).unwrap();
        let truth = reference(&shape, &x, &w, None).unwrap();
        let site = Self { folder, truth, port: free_port() };
        site.authority("certs", names);
        site
    }

    /// Creates another authority, with certificates of `names`.
    pub(crate) fn authority(&self, certs: &str, names: &[&str]) {
        authority(&self.folder, certs, names);
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts `fcdcc worker` with two CPU workers.
    pub(crate) fn worker(&self, args: &str) -> Process {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Beside the certificates: the log grows while a test looks for files changed by a command.
        let log = self.folder.path(&format!("certs/worker-{number}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
            .args("worker --backend cpu --workers 2 --memory 512MiB".split(' '))
            .args(args.split_whitespace())
            .current_dir(self.folder.path("."))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let process = Process { child, log };
        soon("a worker that serves", || process.said().contains(" lends ").then_some(()));
        process
    }

    /// Writes a pool file with these lines in `[cluster]` and two workers of each of `machines`.
    pub(crate) fn pool(&self, cluster: &str, machines: &[&str]) {
        let worker = |name: &&str| format!("[[worker]]\nkind = \"remote\"\nname = \"{name}\"\ncount = 2\n");
        let workers: String = machines.iter().map(worker).collect();
        self.folder.write("pool.toml", format!("[cluster]\n{cluster}\n{workers}"));
    }

    pub(crate) fn run(&self) -> Said {
        self.folder.conv("--pool pool.toml --workers 6 --tolerate 1 --on-shortfall fail --report r.json")
    }

    /// Checks that runs are exact and use `machines` alone.
    pub(crate) fn exact(&self, machines: &[&str]) {
        for run in 0..RUNS {
            let said = self.run();
            assert_eq!(said.status, 0, "run {run}: {}", said.err);
            let mut output = self.folder.load::<f32>("y.npy").into_raw_vec_and_offset().0;
            let error = relative_l2(&output, &self.truth);
            assert!(error < EXACT, "run {run}: {error}");
            output[7] += 1.0;
            assert!(relative_l2(&output, &self.truth) > EXACT, "a wrong element is not noticed");
            let layer = &self.folder.json("r.json")["layers"][0];
            assert_eq!(layer["completion"], "exact", "run {run}: {layer}");
            for row in layer["workers"].as_array().unwrap() {
                let worker = row["worker"].as_str().unwrap();
                let machine = worker.split('/').next().unwrap();
                assert!(machines.contains(&machine), "{worker} is none of {machines:?}");
                assert_ne!(row["state"], "lost", "run {run}: {row}");
            }
        }
    }

    /// Checks that a run fails for lack of workers.
    pub(crate) fn nobody_joins(&self) {
        let error = self.folder.refused(2, "--pool pool.toml", |folder, args| {
            // Notices would add lines to stderr.
            folder.conv(&format!("{args} --quiet"))
        });
        assert!(error.contains("none joined"), "{error}");
    }

    /// The output of `fcdcc cluster --json` with a certificate: names of machines, and whether each can be used.
    pub(crate) fn listing(&self, name: &str) -> Vec<(String, bool)> {
        let said =
            self.folder.run(&format!("cluster --json --connect {} {}", self.endpoint(), certificate(name)));
        assert_eq!((said.status, said.err.as_str()), (0, ""));
        let listing: Value = serde_json::from_str(&said.out).unwrap();
        let row = |machine: &Value| {
            let usable =
                machine["problem"].is_null() && machine["devices"].as_array().is_some_and(|d| d.len() == 2);
            (machine["name"].as_str().unwrap().to_owned(), usable)
        };
        listing["machines"].as_array().unwrap().iter().map(row).collect()
    }

    /// A master in this process that listens with its certificate.
    pub(crate) fn master(&self, machines: &[&str]) -> Cluster {
        Cluster::open(&ClusterOptions {
            listen: vec![self.endpoint().parse().unwrap()],
            security: Security {
                tls: Some(holder(&self.folder, "master")),
                viewers: vec!["operator".to_owned()],
                ..Security::default()
            },
            machines: machines.iter().map(|&name| name.to_owned()).collect(),
            ..ClusterOptions::default()
        })
        .unwrap()
    }

    /// A peer with a certificate that claims to be `machine`, without the checks of this crate.
    pub(crate) fn impostor(&self, machine: &str, certificate: &str) -> (zenoh::Session, impl Sized + use<>) {
        let (locator, certificate) = (format!("quic/{}", self.endpoint()), format!("certs/{certificate}"));
        let session = self.raw(&locator, "certs/ca.pem", Some(&certificate)).unwrap();
        let token = format!("fcdcc/default/w/{machine}/00000000000000ff/alive");
        let token = session.liveliness().declare_token(token).wait().unwrap();
        (session, token)
    }

    /// A plain session of the network engine, without the checks of this crate.
    pub(crate) fn raw(
        &self,
        locator: &str,
        ca: &str,
        certificate: Option<&str>,
    ) -> Result<zenoh::Session, String> {
        let mut config = zenoh::Config::default();
        let mut set = |key: &str, value: Value| config.insert_json5(key, &value.to_string()).unwrap();
        let file = |name: &str| Value::from(self.folder.path(name).to_str().unwrap());
        set("mode", "client".into());
        set("scouting/multicast/enabled", false.into());
        set("connect/endpoints", vec![locator].into());
        set("connect/timeout_ms", 3000.into());
        set("connect/exit_on_failure", true.into());
        set("transport/link/tls/root_ca_certificate", file(ca));
        if let Some(name) = certificate {
            set("transport/link/tls/connect_certificate", file(&format!("{name}.pem")));
            set("transport/link/tls/connect_private_key", file(&format!("{name}.key")));
            set("transport/link/tls/enable_mtls", true.into());
        }
        zenoh::open(config).wait().map_err(|e| e.to_string())
    }
}

/// Creates an authority in `certs` of a folder, with certificates of `names`.
pub(crate) fn authority(folder: &Folder, certs: &str, names: &[&str]) {
    let script = repository().join("scripts/dev_ca.sh");
    let made = Command::new("bash").arg(script).arg(folder.path(certs)).args(names).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// The certificate of `name` in `certs` of a folder.
pub(crate) fn holder(folder: &Folder, name: &str) -> Tls {
    let certs = folder.path("certs");
    Tls {
        ca: certs.join("ca.pem"),
        certificate: certs.join(format!("{name}.pem")),
        key: certs.join(format!("{name}.key")),
    }
}

/// A process that is killed at the end of the test.
pub(crate) struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, as the test has noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Repeats `look` until it finds something; returns that.
pub(crate) fn soon<R>(what: &str, mut look: impl FnMut() -> Option<R>) -> R {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Command line options for a certificate.
pub(crate) fn certificate(name: &str) -> String {
    let (folder, _) = name.split_once('/').unwrap_or(("certs", name));
    let file = if name.contains('/') { name.to_owned() } else { format!("certs/{name}") };
    format!("--ca {folder}/ca.pem --certificate {file}.pem --key {file}.key")
}

/// Lines of a pool file for a certificate.
pub(crate) fn tls(name: &str) -> String {
    format!(
        "tls = {{ ca = \"certs/ca.pem\", certificate = \"certs/{name}.pem\", key = \"certs/{name}.key\" }}"
    )
}
