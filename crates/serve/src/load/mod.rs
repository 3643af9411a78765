//! Load on a running server: requests that arrive by a schedule, whatever the server does.
//!
//! Relevant if you want to know how a server answers under load. A client that waits for an answer before it sends the next
//! request slows down with the server, and so measures few of the slow answers (*coordinated omission*). Here the times of
//! arrival are drawn before the first request ([`Arrivals`]), and [`Sample`] has three times: when a request was meant to
//! start, when a free connection took it, and when its answer was complete. The latency that a user sees counts from the
//! first of them.
//!
//! Invariant: every arrival has one sample, in the order of arrival, and the number of connections never exceeds the limit.

mod client;
mod compare;
mod message;
mod schedule;
mod target;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fcdcc::model::Tensor;
use fcdcc::{Error, Result};
use tokio::sync::Semaphore;

use client::{Connection, Failure};
use compare::{Expected, TOLERANCE};
use message::{Answer, Request};
pub use schedule::Arrivals;
use target::Target;

/// Most requests of one load: each has a sample in memory.
const MOST_REQUESTS: usize = 5_000_000;
/// The longest time for the first request, which may prepare the model.
const FIRST: Duration = Duration::from_mins(10);

/// The largest relative L2 distance at which two results of one input agree: they differ by rounding only.
pub const AGREES: f64 = TOLERANCE;

/// What is sent where, how often and for how long.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub url: String,
    /// The name of the model.
    pub model: String,
    /// Its inputs in the order of the model; none: random numbers for one item, drawn from the seed.
    pub inputs: Vec<Tensor>,
    /// The first output that every answer must have; none: that of the first answer.
    pub expected: Option<Tensor>,
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// Requests a second.
    pub rate: f64,
    /// The time during which requests arrive.
    pub duration: Duration,
    /// Most connections, and so most requests in flight.
    pub connections: usize,
    /// The longest time from sending a request to its answer; the server is told too.
    pub limit: Duration,
    /// Seed of arrivals and inputs.
    pub seed: u64,
    /// The token of the server.
    pub token: Option<String>,
    /// The authority of the server's certificate, in PEM.
    pub authority: Option<std::path::PathBuf>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200, with the expected outputs.
    Right,
    /// 200, with other outputs.
    Wrong,
    /// Another status.
    Status(u16),
    /// No answer within the limit.
    TimedOut,
    /// No connection, or one that ended before the answer.
    Broken,
}

/// One request. Times count from the start of the load.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it arrived by the schedule.
    pub intended: Duration,
    /// When a free connection took it.
    pub started: Duration,
    /// When its answer was complete, or it failed.
    pub ended: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

impl Sample {
    /// From the intended start to the end: what a user sees.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.intended)
    }

    /// From sending to the end: what a client that waits for its answers would measure.
    #[must_use]
    pub fn service(&self) -> Duration {
        self.ended.saturating_sub(self.started)
    }
}

/// What a load found.
#[derive(Clone, Debug)]
pub struct LoadOutcome {
    /// The version of the model that answered first.
    pub version: String,
    /// The shapes of the inputs, such as `image [1, 1, 32, 32]`.
    pub inputs: String,
    /// One for each arrival, in their order.
    pub samples: Vec<Sample>,
    /// From the first arrival to the last answer.
    pub elapsed: Duration,
    /// The largest relative L2 distance of an answer from the expected outputs; infinite where shapes or integers differ.
    pub distance: f64,
}

/// Sends the load and waits for every answer; `progress` hears of the requests that were answered, and of all.
///
/// # Errors
/// [`Error::InvalidParameter`] for options out of bounds and inputs that the model does not take, [`Error::Unavailable`]
/// where the server cannot be reached or refuses the first request, [`Error::File`] for an authority that is no
/// certificate.
pub fn run(options: &LoadOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<LoadOutcome> {
    check(options)?;
    let arrivals = options.arrivals.times(options.rate, options.duration, options.seed);
    if arrivals.is_empty() {
        let help = "no request arrives within the duration: raise the rate or the duration";
        return Err(Error::invalid("rate of requests", options.rate, help));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|cause| unavailable(&options.url, &cause.to_string()))?;
    let target = Target::new(options)?;
    let prepared = runtime.block_on(prepare(target, options))?;
    let load = Arc::new(Load {
        request: prepared.target.infer(options.limit),
        target: prepared.target,
        expected: prepared.expected,
        limit: options.limit,
        samples: Mutex::new(vec![None; arrivals.len()]),
        distance: Mutex::new(0.0),
        arrivals,
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        arrived: Semaphore::new(0),
    });
    let started = Instant::now();
    std::thread::scope(|scope| {
        // Its own thread, as timers of the runtime have a resolution of a millisecond.
        scope.spawn(|| load.pace(started));
        runtime.block_on(load.serve(options.connections, started, progress));
    });
    let elapsed = started.elapsed();
    let samples = load.samples.lock().unwrap_or_else(PoisonError::into_inner).drain(..).flatten().collect();
    let distance = *load.distance.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(LoadOutcome { version: prepared.version, inputs: prepared.inputs, samples, elapsed, distance })
}

fn check(options: &LoadOptions) -> Result<()> {
    if !(options.rate.is_finite() && options.rate > 0.0) {
        return Err(Error::invalid("rate of requests", options.rate, "give requests a second, above zero"));
    }
    let count = options.rate * options.duration.as_secs_f64();
    if count > MOST_REQUESTS as f64 {
        let help = format!("at most {MOST_REQUESTS}: lower the rate or the duration");
        return Err(Error::invalid("number of requests", count.round(), help));
    }
    if !(1..=4096).contains(&options.connections) {
        return Err(Error::invalid("number of connections", options.connections, "use 1 to 4096"));
    }
    if options.limit.is_zero() {
        return Err(Error::invalid("time for an answer", "0s", "give a time above zero, such as 10s"));
    }
    Ok(())
}

fn unavailable(url: &str, cause: &str) -> Error {
    Error::Unavailable {
        what: format!("the server at {url} ({cause})"),
        help: "check its address, and that `GET /v2/health/ready` answers 200".into(),
    }
}

/// What the first request found out.
struct Prepared {
    target: Target,
    expected: Expected,
    version: String,
    inputs: String,
}

/// Asks for the inputs of the model and sends the first request, whose answer the others are compared with.
async fn prepare(mut target: Target, options: &LoadOptions) -> Result<Prepared> {
    let failed = |failure: Failure| match failure {
        Failure::TimedOut => unavailable(&options.url, "no answer in time"),
        Failure::Broken(cause) => unavailable(&options.url, &cause),
    };
    let mut connection = Connection::new();
    let described = connection.send(&target, &target.metadata(), FIRST).await.map_err(failed)?;
    let inputs = target.take_inputs(&described, options)?;
    let request = target.infer(FIRST);
    let answer = connection.send(&target, &request, FIRST).await.map_err(failed)?;
    if answer.status != 200 {
        let text = format!("the first request was answered with {}: {}", answer.status, answer.text());
        return Err(unavailable(&options.url, &text));
    }
    let (expected, version) = Expected::of(&answer, options.expected.as_ref())?;
    Ok(Prepared { target, expected, version, inputs })
}

/// The state that the connections share.
struct Load {
    target: Target,
    request: Request,
    expected: Expected,
    limit: Duration,
    arrivals: Vec<Duration>,
    samples: Mutex<Vec<Option<Sample>>>,
    distance: Mutex<f64>,
    /// The arrival that the next free connection takes.
    next: AtomicUsize,
    done: AtomicUsize,
    /// A permit for each arrival that was not taken yet.
    arrived: Semaphore,
}

impl Load {
    /// Releases every arrival at its time.
    fn pace(&self, started: Instant) {
        for at in &self.arrivals {
            let left = at.saturating_sub(started.elapsed());
            if !left.is_zero() {
                std::thread::sleep(left);
            }
            self.arrived.add_permits(1);
        }
    }

    /// Serves the arrivals on `count` connections until all have an outcome.
    async fn serve(self: &Arc<Self>, count: usize, started: Instant, progress: &mut dyn FnMut(usize, usize)) {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count.min(self.arrivals.len()) {
            let load = Arc::clone(self);
            tasks.spawn(async move { load.connection(started).await });
        }
        let total = self.arrivals.len();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                ended = tasks.join_next() => if ended.is_none() { break },
                _ = tick.tick() => progress(self.done.load(Ordering::Relaxed), total),
            }
        }
        progress(total, total);
    }

    fn compared(&self, answer: &Answer) -> Outcome {
        let distance = self.expected.distance(answer);
        let mut largest = self.distance.lock().unwrap_or_else(PoisonError::into_inner);
        *largest = largest.max(distance);
        if distance <= TOLERANCE { Outcome::Right } else { Outcome::Wrong }
    }

    /// One connection: takes arrivals, one after the other.
    async fn connection(&self, started: Instant) {
        let mut connection = Connection::new();
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(intended) = self.arrivals.get(index).copied() else { return };
            // The pacing thread releases as many permits as there are arrivals; the semaphore is never closed.
            let Ok(permit) = self.arrived.acquire().await else { return };
            permit.forget();
            let began = started.elapsed();
            let outcome = match connection.send(&self.target, &self.request, self.limit).await {
                Ok(answer) if answer.status == 200 => self.compared(&answer),
                Ok(answer) => Outcome::Status(answer.status),
                Err(Failure::TimedOut) => Outcome::TimedOut,
                Err(Failure::Broken(cause)) => {
                    tracing::debug!("a request was not answered: {cause}");
                    Outcome::Broken
                }
            };
            let sample = Sample { intended, started: began.max(intended), ended: started.elapsed(), outcome };
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples[index] = Some(sample);
            drop(samples);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}
