//! Requests wait in bounded queues, one for each model, and a fixed number of threads computes them.
//!
//! Relevant if you want to know what happens to a request between its arrival and its answer. Handlers of requests call
//! [`Dispatcher::submit`] and wait for a message; only the threads of the dispatcher compute. A handler that is dropped,
//! because its client is gone or its time is over, drops its [`Ticket`]: a request that waits is then skipped, and a run
//! all of whose requests are dropped is cancelled.
//!
//! Invariant: every submitted request gets exactly one message, unless its ticket is dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fcdcc::CancelToken;
use fcdcc::model::Tensor;
use tokio::sync::oneshot;

use crate::answer::Computed;
use crate::batch::{Decision, Waiting, decide};
use crate::cost::RunTimes;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::request::Priority;
use crate::served::{Accepted, Served};

/// The message that answers a request.
pub(crate) type Answer = Result<Computed, ApiError>;

/// Queues and the threads that empty them.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// For each thread: a request came, or the threads must end.
    wakers: Vec<Condvar>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    lanes: Vec<Lane>,
    /// Threads that wait. The last one, which has worked most recently, is woken first: its caches are warm.
    idle: Vec<usize>,
    stopping: bool,
}

/// The queue of one model, by priority, and by arrival within one. It goes when its last request does, so that it wakes no
/// thread and holds no model that was unloaded.
struct Lane {
    model: Arc<Served>,
    jobs: VecDeque<Job>,
}

struct Job {
    tensors: Vec<Tensor>,
    items: usize,
    priority: Priority,
    arrived: Instant,
    place: Arc<Place>,
    reply: oneshot::Sender<Answer>,
}

/// Where a request is, shared by its job and its ticket.
#[derive(Default)]
struct Place(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Waiting,
    Running(Arc<Run>),
    Dropped,
}

/// One run, and how many of its requests are still wanted.
struct Run {
    wanted: AtomicUsize,
    cancel: CancelToken,
}

/// The claim on an answer; dropping it withdraws the request.
pub(crate) struct Ticket {
    place: Arc<Place>,
    pub(crate) answer: oneshot::Receiver<Answer>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut stage = self.place.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Running(run) = std::mem::replace(&mut *stage, Stage::Dropped)
            && run.wanted.fetch_sub(1, Ordering::AcqRel) == 1
        {
            run.cancel.cancel();
        }
    }
}

impl Place {
    fn is_dropped(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Stage::Dropped)
    }

    /// Enters a run; false where the request was dropped.
    fn enter(&self, run: &Arc<Run>) -> bool {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*stage, Stage::Dropped) {
            return false;
        }
        run.wanted.fetch_add(1, Ordering::AcqRel);
        *stage = Stage::Running(Arc::clone(run));
        true
    }
}

impl Dispatcher {
    /// Starts `threads` threads.
    pub(crate) fn start(threads: usize, metrics: &Arc<Metrics>) -> std::io::Result<Self> {
        let wakers = (0..threads).map(|_| Condvar::new()).collect();
        let shared = Arc::new(Shared { state: Mutex::default(), wakers, metrics: Arc::clone(metrics) });
        let dispatcher = Self { shared, threads: Mutex::default() };
        for index in 0..threads {
            let shared = Arc::clone(&dispatcher.shared);
            let thread = std::thread::Builder::new().name(format!("fcdcc serve {index}"));
            let thread = thread.spawn(move || shared.work(index))?;
            dispatcher.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(dispatcher)
    }

    /// Queues a request, behind those of its priority.
    ///
    /// # Errors
    /// 429 if the model's queue is full, 503 if the server has ended.
    pub(crate) fn submit(
        &self,
        model: &Arc<Served>,
        request: Accepted,
        priority: Priority,
    ) -> Result<Ticket, ApiError> {
        let (reply, answer) = oneshot::channel();
        let place = Arc::new(Place::default());
        let ticket = Ticket { place: Arc::clone(&place), answer };
        let mut state = self.shared.locked();
        if state.stopping {
            return Err(ApiError::unavailable("the server has ended"));
        }
        let found = state.lanes.iter().position(|lane| Arc::ptr_eq(&lane.model, model));
        let index = found.unwrap_or_else(|| {
            state.lanes.push(Lane { model: Arc::clone(model), jobs: VecDeque::new() });
            state.lanes.len() - 1
        });
        let (lane, limit) = (&mut state.lanes[index], model.config.queue_length);
        if lane.jobs.len() >= limit {
            // Requests whose clients are gone take no place.
            lane.jobs.retain(|job| !job.place.is_dropped());
        }
        if lane.jobs.len() >= limit {
            let text = format!("{limit} requests wait for model {} already: try again later", model.name);
            return Err(ApiError::busy(text));
        }
        let Accepted { tensors, items } = request;
        let at = lane.jobs.partition_point(|job| job.priority <= priority);
        lane.jobs.insert(at, Job { tensors, items, priority, arrived: Instant::now(), place, reply });
        self.shared.wake_one(state);
        Ok(ticket)
    }

    /// Number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.locked().lanes.iter().map(|lane| lane.jobs.len()).sum()
    }

    /// Ends the threads once the queues are empty.
    pub(crate) fn stop(&self) {
        self.shared.locked().stopping = true;
        self.shared.wakers.iter().for_each(Condvar::notify_one);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Its panics are caught within.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread that has waited least, if one waits.
    fn wake_one(&self, mut state: MutexGuard<'_, State>) {
        let thread = state.idle.pop();
        drop(state);
        if let Some(thread) = thread {
            self.wakers[thread].notify_one();
        }
    }

    /// Computes batches until the dispatcher stops. `thread` is the number of this thread.
    fn work(&self, thread: usize) {
        while let Some((model, jobs)) = self.next(thread) {
            self.compute(&model, jobs);
        }
    }

    /// Waits for a batch; `None` when there is none left and the dispatcher stops.
    fn next(&self, thread: usize) -> Option<(Arc<Served>, Vec<Job>)> {
        let mut state = self.locked();
        loop {
            let time = match state.take(Instant::now()) {
                Ok(batch) => {
                    if !state.lanes.is_empty() {
                        self.wake_one(state);
                    }
                    return Some(batch);
                }
                Err(None) if state.stopping => return None,
                Err(time) => time,
            };
            state.idle.push(thread);
            let waker = &self.wakers[thread];
            state = match time {
                None => waker.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(time) => waker.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            };
            // `wake_one` has removed this thread from the list; a timeout or the end of the server has not.
            state.idle.retain(|other| *other != thread);
        }
    }

    fn compute(&self, model: &Arc<Served>, jobs: Vec<Job>) {
        // Counted as wanted while its requests enter, so that one that is dropped meanwhile does not cancel the others.
        let run = Arc::new(Run { wanted: AtomicUsize::new(1), cancel: CancelToken::new() });
        let jobs: Vec<Job> = jobs.into_iter().filter(|job| job.place.enter(&run)).collect();
        if run.wanted.fetch_sub(1, Ordering::AcqRel) == 1 {
            return;
        }
        let started = Instant::now();
        for job in &jobs {
            self.metrics.queued(&model.name, started.duration_since(job.arrived));
        }
        let requests: Vec<(&[Tensor], usize)> =
            jobs.iter().map(|job| (job.tensors.as_slice(), job.items)).collect();
        // A panic is a defect; it must not take the thread, which others need.
        let compute = || model.run_together(&requests, &run.cancel);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compute));
        self.metrics.computed(&model.name, jobs.iter().map(|job| job.items).sum(), started.elapsed());
        match outcome {
            Ok(Ok(together)) => {
                let queued = |job: &Job| (job.items, started.duration_since(job.arrived));
                model.stats.ran(&jobs.iter().map(queued).collect::<Vec<_>>(), together.times);
                self.metrics.phases(&model.name, &together.phases);
                let report = Arc::new(together.report);
                for (job, outputs) in jobs.into_iter().zip(together.parts) {
                    let queue = started.duration_since(job.arrived);
                    let times = RunTimes { queue, began: Some(started), ..together.phases };
                    // A dropped receiver has no use for the answer.
                    let _ = job.reply.send(Ok(Computed { outputs, report: Arc::clone(&report), times }));
                }
            }
            Ok(Err(error)) => {
                let error = ApiError::from(error);
                // One request may be at fault (a NaN, an index out of range): then the others must not fail with it.
                if jobs.len() > 1 && !run.cancel.is_cancelled() {
                    for job in jobs {
                        self.compute_alone(model, job);
                    }
                } else {
                    refuse(jobs, &error);
                }
            }
            Err(_) => {
                let error = ApiError::internal("computing the model failed: a defect, please report it");
                refuse(jobs, &error);
            }
        }
    }

    fn compute_alone(&self, model: &Arc<Served>, job: Job) {
        {
            let mut stage = job.place.0.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*stage, Stage::Dropped) {
                return;
            }
            *stage = Stage::Waiting;
        }
        self.compute(model, vec![job]);
    }
}

/// Answers all requests with an error.
fn refuse(jobs: Vec<Job>, error: &ApiError) {
    for job in jobs {
        // A dropped receiver has no use for it.
        let _ = job.reply.send(Err(error.clone()));
    }
}

impl State {
    /// The next batch, of the model whose first request has the highest priority, and has waited longest among those; or the
    /// time until there may be one, which is unknown while no request waits.
    fn take(&mut self, now: Instant) -> Result<(Arc<Served>, Vec<Job>), Option<Duration>> {
        for lane in &mut self.lanes {
            while lane.jobs.front().is_some_and(|job| job.place.is_dropped()) {
                lane.jobs.pop_front();
            }
        }
        self.lanes.retain(|lane| !lane.jobs.is_empty());
        let mut soonest: Option<Duration> = None;
        let mut ready: Option<(usize, usize, (Priority, Instant))> = None;
        for (index, lane) in self.lanes.iter().enumerate() {
            let Some(first) = lane.jobs.front() else { continue };
            // A request of a higher priority goes first, and does not make the others wait longer.
            let oldest = lane.jobs.iter().map(|job| job.arrived).min().unwrap_or(now);
            let age = if self.stopping { Duration::MAX } else { now.saturating_duration_since(oldest) };
            let rank = (first.priority, first.arrived);
            let waiting: Vec<Waiting> = lane.jobs.iter().map(|job| job.beside(first)).collect();
            match decide(lane.model.config.batching.as_ref(), &waiting, age) {
                Decision::Run(count) if ready.is_none_or(|(_, _, other)| rank < other) => {
                    ready = Some((index, count, rank));
                }
                Decision::Wait(time) => soonest = Some(soonest.map_or(time, |other| other.min(time))),
                Decision::Run(_) | Decision::Idle => {}
            }
        }
        let Some((index, count, _)) = ready else { return Err(soonest) };
        let lane = &mut self.lanes[index];
        let batch = (Arc::clone(&lane.model), lane.jobs.drain(..count).collect());
        if lane.jobs.is_empty() {
            self.lanes.swap_remove(index);
        }
        Ok(batch)
    }
}

impl Job {
    fn beside(&self, first: &Self) -> Waiting {
        let item = |job: &Self| job.tensors.first().and_then(|t| t.shape().get(1..).map(<[usize]>::to_vec));
        Waiting { items: self.items, like_first: item(self) == item(first) }
    }
}
