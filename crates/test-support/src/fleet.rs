//! Worker processes, servers in this process, and their masters, on loopback.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fcdcc::array::WireFormat;
use fcdcc::cluster::{Cluster, ClusterOptions, Endpoint, Seats, Security, ServeOptions, WorkerServer};
use fcdcc::scheduler::{HealthOptions, State};
use fcdcc::{CpuWorker, Pool, PoolOptions, Worker, WorkerId};

use crate::binary::command;

/// Limit for what should happen soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Sets the environment variables of the network engine, as the command does.
///
/// # Safety
/// The process must not have a second thread yet.
#[allow(unsafe_code, reason = "a test binary's first call")]
pub unsafe fn prepare_environment() {
    let (name, value) = fcdcc::cluster::RUNTIME_VARIABLE;
    if std::env::var_os(name).is_none() {
        // SAFETY: guaranteed by the caller.
        unsafe { std::env::set_var(name, value) };
    }
}

/// A free endpoint on loopback.
pub fn endpoint() -> Endpoint {
    // The system does not reuse a port soon after it was closed.
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    address.to_string().parse().unwrap()
}

/// Waits until `done`; panics with `what` after [`SOON`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `fcdcc worker` process. Dropping it kills it.
pub struct Process {
    pub name: String,
    arguments: Vec<String>,
    child: Child,
}

impl Process {
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let child = Self::spawn(name, &arguments);
        Self { name: name.to_owned(), arguments, child }
    }

    /// A process with `workers` CPU workers that connects to a master.
    pub fn connect(name: &str, master: &Endpoint, workers: usize) -> Self {
        let (master, workers) = (master.to_string(), workers.to_string());
        Self::start(name, &["--connect", &master, "--backend", "cpu", "--workers", &workers])
    }

    fn spawn(name: &str, arguments: &[String]) -> Child {
        Command::new(command())
            .args(["worker", "--quiet", "--name", name])
            .args(arguments)
            // Many processes share few cores.
            .env("ZENOH_RUNTIME", "(tx:(worker_threads:2),rx:(worker_threads:1))")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Kills it (kill -9).
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the same process again after it was killed.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(&self.name, &self.arguments);
    }

    /// Terminates it as an operator would; returns its exit status.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Options of a test's server `name` for masters at `connect`.
pub fn serving(name: &str, connect: &Endpoint) -> ServeOptions {
    ServeOptions {
        name: name.to_owned(),
        cluster: "default".to_owned(),
        listen: Vec::new(),
        connect: vec![connect.clone()],
        security: Security::default(),
        masters: Vec::new(),
        memory_bytes: 1 << 30,
        cache: None,
    }
}

/// A server in this process with `count` CPU workers.
pub fn server(name: &str, connect: &Endpoint, count: usize) -> WorkerServer {
    WorkerServer::start(CpuWorker::fleet(count), &serving(name, connect)).unwrap()
}

/// A master that listens.
pub fn master(at: &Endpoint) -> Cluster {
    Cluster::open(&ClusterOptions { listen: vec![at.clone()], ..ClusterOptions::default() }).unwrap()
}

/// A master that connects.
pub fn master_to(at: &Endpoint) -> Cluster {
    Cluster::open(&ClusterOptions { connect: vec![at.clone()], ..ClusterOptions::default() }).unwrap()
}

/// `count` workers of any machines, after all of them have joined.
pub fn workers(cluster: &Cluster, count: usize) -> Vec<Box<dyn Worker>> {
    workers_sending(cluster, count, WireFormat::Full)
}

/// As [`workers`], whose slabs and sub-results travel in this format.
pub fn workers_sending(cluster: &Cluster, count: usize, wire: WireFormat) -> Vec<Box<dyn Worker>> {
    let workers = cluster.workers(&[Seats { count: Some(count), wire, ..Seats::default() }], SOON);
    assert!(workers.iter().all(|w| w.unavailable_reason().is_none()), "{:?}", cluster.members());
    workers
}

/// A pool that readmits lost workers at once.
pub fn pool_of(workers: Vec<Box<dyn Worker>>) -> Pool {
    let health = HealthOptions {
        backoff: Duration::from_millis(20),
        max_backoff: Duration::from_millis(200),
        ..HealthOptions::default()
    };
    Pool::with_options(workers, PoolOptions { health, ..PoolOptions::default() }).unwrap()
}

/// Number of workers that can get tasks.
pub fn usable(pool: &Pool) -> usize {
    let state = |w| pool.health(w).unwrap().state;
    (0..pool.len()).map(WorkerId).filter(|w| !matches!(state(*w), State::Lost | State::Quarantined)).count()
}

/// Resident bytes of this process.
pub fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
