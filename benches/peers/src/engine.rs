//! What is compared: engines that convolve a layer, and the clock they are timed with.

use std::time::Instant;

use anyhow::{Result, ensure};
use fcdcc_peers::numbers::median;

use crate::layers::Layer;
use crate::verify::Data;

/// What a time includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// A call as a caller sees it; on a device with the upload of the input and the readback of the output.
    Whole,
    /// On a device: the input lies there already, and many convolutions are waited for at once.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "for engines on devices"))]
    Compute,
}

impl Span {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Compute => "compute",
        }
    }
}

/// The clock of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Clock {
    /// Time that passes.
    Wall,
    /// Processor time of the calling thread: what others do on the machine disturbs it less. One thread only.
    Cpu,
}

impl Clock {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "cpu",
        }
    }

    /// Seconds from some fixed moment.
    pub(crate) fn now(self) -> f64 {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        match self {
            #[cfg(unix)]
            Self::Cpu => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
            }
            _ => BEGIN.elapsed().as_secs_f64(),
        }
    }
}

/// A layer that an engine is to make ready.
pub(crate) struct Job<'a> {
    pub(crate) layer: &'a Layer,
    pub(crate) data: &'a Data,
    pub(crate) threads: usize,
    /// With several threads: whether each keeps to a processor of its own.
    pub(crate) pin: bool,
    pub(crate) clock: Clock,
}

impl Job<'_> {
    /// Threads for an engine of this process; none for the calling thread alone.
    pub(crate) fn pool(&self) -> Result<Option<rayon::ThreadPool>> {
        if self.threads == 1 {
            return Ok(None);
        }
        let pin = self.pin;
        let builder = rayon::ThreadPoolBuilder::new().num_threads(self.threads);
        Ok(Some(builder.start_handler(move |thread| pin_to(pin.then_some(thread))).build()?))
    }
}

/// Keeps the calling thread to one processor. Where that is not possible it stays free: it computes all the same.
fn pin_to(processor: Option<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(processor) = processor {
        let mut set = rustix::thread::CpuSet::new();
        set.set(processor);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processor;
}

/// Somebody who convolves.
pub(crate) trait Engine {
    fn name(&self) -> &'static str;

    /// Makes a layer ready in place of the one before, filters and all. Answers what is worth knowing about how.
    fn load(&mut self, job: &Job<'_>) -> Result<String>;

    /// Convolves once: the output.
    fn run(&mut self) -> Result<Vec<f32>>;

    /// Convolves `calls` times: the seconds of one call, the median where calls are timed one by one.
    fn time(&mut self, span: Span, calls: usize) -> Result<f64>;
}

/// The median of the seconds of each of `calls` calls.
pub(crate) fn each_call(clock: Clock, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begin = clock.now();
        call()?;
        seconds.push(clock.now() - begin);
    }
    ensure!(calls > 0, "no call to time");
    Ok(median(&seconds))
}
