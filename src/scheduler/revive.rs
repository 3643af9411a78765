//! Replaces a lost worker in the background: respawns it, probes it and gives it its filters.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use super::slot::{Command, Shared, Status, locked};
use crate::array::DType;
use crate::error::{Error, Result, panic_text};
use crate::worker::{FilterKey, Probe, Respawn, Worker};

pub(super) struct Revival {
    pub(super) respawn: Respawn,
    pub(super) shared: Arc<Shared>,
    pub(super) status: Arc<Status>,
    pub(super) name: String,
    /// Element types in which the worker is to be probed.
    pub(super) dtypes: Vec<DType>,
}

/// Starts a thread that ends when the worker is back or the pool is dropped.
pub(super) fn spawn(revival: Revival) {
    let thread = std::thread::Builder::new().name(format!("fcdcc revive {}", revival.name));
    if let Err(error) = thread.spawn(move || revival.run()) {
        tracing::warn!(%error, "no thread to bring a worker back");
    }
}

impl Revival {
    fn run(self) {
        let options = self.shared.options.health;
        let losses = self.status.recent_losses().saturating_sub(1);
        for attempt in 0u32.. {
            // The first loss is treated as an accident; from then on the pause doubles with every loss and failure.
            if let Some(doublings) = losses.saturating_add(attempt).checked_sub(1) {
                let pause = options.backoff.saturating_mul(2u32.saturating_pow(doublings));
                if self.shared.closing.sleep(pause.min(options.max_backoff)) {
                    return;
                }
            }
            // A driver that just lost a device may panic.
            let made = catch_unwind(AssertUnwindSafe(|| self.make())).unwrap_or_else(|panic| {
                Err(Error::WorkerLost {
                    worker: self.name.clone(),
                    cause: format!("making it anew panicked: {}", panic_text(&*panic)),
                })
            });
            match made {
                Ok((worker, holds)) => {
                    // Fails only if the pool is being dropped.
                    let _ = self.status.post(Command::Return(worker, holds));
                    return;
                }
                Err(error) => tracing::warn!(worker = self.name, %error, attempt, "not back yet"),
            }
            if self.shared.closing.is_cancelled() {
                return;
            }
        }
    }

    /// The probed worker, and the filters that it holds already.
    fn make(&self) -> Result<(Box<dyn Worker>, HashSet<FilterKey>)> {
        let mut worker = (self.respawn)(&self.shared.closing)?;
        for dtype in &self.dtypes {
            Probe::new(*dtype).check(worker.as_mut(), &self.shared.closing)?;
        }
        let mut holds = HashSet::new();
        let wanted = locked(&self.status.wanted).clone();
        for (key, shape) in wanted {
            let source = locked(&self.shared.sources).get(&key.layer).and_then(Weak::upgrade);
            if let Some(source) = source {
                worker.install(key, &shape, source.coded_filters(key.subtask))?;
                holds.insert(key);
            }
        }
        Ok((worker, holds))
    }
}
