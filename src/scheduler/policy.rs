//! The policy of a run: how long to wait, what to check, and what to do when waiting does not help.
//!
//! Plain values; [`Gather`](super::Gather) carries them out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Message, Parameter, Result};

/// What to do when fewer results than the code needs can come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShortfall {
    /// Return an error.
    Fail,
    /// Give missing subtasks to other workers, and compute the layer locally if that does not help.
    #[default]
    Redispatch,
    /// Compute the layer locally.
    Local,
}

/// Whether spare results are used as checksums of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audit {
    /// Every finite result is trusted.
    Off,
    /// The first run of a layer, and then one in [`Audit::WATCH_EVERY`], is checked by one spare result; after a faulty
    /// worker was found, all runs are for a while. If no worker returns such a result in the time in which this machine
    /// would compute one, this machine does. With replication, uncoded layers and [`OnShortfall::Fail`] it does not: there
    /// the run waits at most as long as it took to get the results that decode. Spare results that arrive anyway are
    /// compared in every run. Where results contradict each other, faulty workers are left out if spare results identify
    /// them; otherwise the layer is computed on this machine.
    #[default]
    Watch,
    /// Waits for one spare result, and refuses a layer whose results contradict each other.
    Detect,
    /// Identifies faulty workers and leaves them out; the layer is refused when they cannot be identified.
    /// Needs two spare results for each wrong one.
    Correct,
}

impl OnShortfall {
    const NAMES: [(&'static str, Self); 3] =
        [("fail", Self::Fail), ("redispatch", Self::Redispatch), ("local", Self::Local)];
}

impl Audit {
    /// With [`Audit::Watch`], one in this many runs of a layer is audited.
    pub const WATCH_EVERY: u32 = 32;

    const NAMES: [(&'static str, Self); 4] =
        [("off", Self::Off), ("watch", Self::Watch), ("detect", Self::Detect), ("correct", Self::Correct)];
}

/// The name of `value` in a table.
fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, other)| other == value).map_or("", |(name, _)| name)
}

/// The value with the name `text` in a table.
fn value_of<T: Copy>(names: &[(&'static str, T)], what: &str, text: &str) -> Result<T> {
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        Error::invalid(what, format!("{text:?}"), format!("use one of {}", known.join(", ")))
    })
}

impl fmt::Display for OnShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&Self::NAMES, self))
    }
}

impl FromStr for OnShortfall {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        value_of(&Self::NAMES, "on-shortfall", text)
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&Self::NAMES, self))
    }
}

impl FromStr for Audit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        value_of(&Self::NAMES, "audit", text)
    }
}

/// The rules of one layer's runs. All times count from the first dispatch.
/// [`LayerOptions`](crate::LayerOptions) holds them beside the options of the layer itself.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::{LayerOptions, OnShortfall, Policy};
///
/// // Ten seconds for the workers, and no other way.
/// let policy = Policy {
///     deadline: Duration::from_secs(10),
///     on_shortfall: OnShortfall::Fail,
///     ..Policy::default()
/// };
/// let options = LayerOptions::default().policy(policy);
/// assert_eq!(options.policy, policy);
/// // Only redispatching layers hedge.
/// assert_eq!(policy.hedges(), None);
/// ```
///
/// The deadline determines when the later steps begin:
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::Policy;
///
/// let policy = Policy { deadline: Duration::from_secs(8), ..Policy::default() };
/// assert_eq!(policy.redispatch_at(), Some(Duration::from_secs(4)));
/// assert_eq!(policy.local_at(Duration::from_secs(2)), Some(Duration::from_secs(4)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Time at which the run fails if it has not decoded.
    pub deadline: Duration,
    /// What to do when fewer results than needed can come.
    pub on_shortfall: OnShortfall,
    /// The quantile of the layer's subtask latencies after which idle workers get copies of missing subtasks; `None`:
    /// never. Requires [`OnShortfall::Redispatch`].
    pub hedge: Option<f64>,
    /// Whether sub-results of incomplete subtasks count.
    pub partial: bool,
    /// Maximum extra wait of a badly conditioned run for one more result, as a fraction of the elapsed time per decimal
    /// digit of predicted error gained.
    pub patience: f64,
    /// Whether spare results are used as checksums.
    pub audit: Audit,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            on_shortfall: OnShortfall::default(),
            hedge: Some(0.5),
            partial: true,
            patience: 0.1,
            audit: Audit::default(),
        }
    }
}

impl Policy {
    /// Maximum number of times that one subtask is dispatched.
    pub const MAX_ATTEMPTS: usize = 3;

    /// Checks the values that no run can use.
    pub(crate) fn check(&self) -> Result<()> {
        if self.deadline.is_zero() {
            let what = Message::about("deadline", Parameter::Deadline);
            return Err(Error::invalid(what, 0, "give a time above zero, such as 500ms or 2s"));
        }
        if let Some(quantile) = self.hedge
            && !(quantile > 0.0 && quantile < 1.0)
        {
            let what = Message::about("hedging quantile", Parameter::Hedge);
            return Err(Error::invalid(what, quantile, "give a number between 0 and 1, or off"));
        }
        if !(self.patience.is_finite() && self.patience >= 0.0) {
            let what = Message::about("patience", Parameter::Patience);
            return Err(Error::invalid(what, self.patience, "give a number of at least 0"));
        }
        Ok(())
    }

    /// The quantile, if the policy allows hedging.
    #[must_use]
    pub fn hedges(&self) -> Option<f64> {
        self.hedge.filter(|_| self.on_shortfall == OnShortfall::Redispatch)
    }

    /// Time at which workers that have not answered are given up in favour of others, busy or not: half the deadline.
    #[must_use]
    pub fn redispatch_at(&self) -> Option<Duration> {
        (self.on_shortfall == OnShortfall::Redispatch).then(|| self.deadline / 2)
    }

    /// Time at which the layer is computed locally although workers may still answer: early enough for a computation that
    /// is expected to take `local`, with as much again to spare; between a quarter and three quarters of the deadline.
    #[must_use]
    pub fn local_at(&self, local: Duration) -> Option<Duration> {
        let at = self.deadline.saturating_sub(local.saturating_mul(2));
        (self.on_shortfall != OnShortfall::Fail).then(|| at.clamp(self.deadline / 4, self.deadline / 4 * 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused_with_the_list() {
        for text in ["fail", "redispatch", "local"] {
            assert_eq!(text.parse::<OnShortfall>().unwrap().to_string(), text);
        }
        for text in ["off", "watch", "detect", "correct"] {
            assert_eq!(text.parse::<Audit>().unwrap().to_string(), text);
        }
        let error = "check".parse::<Audit>().unwrap_err().to_string();
        assert!(error.contains("\"check\"") && error.contains("off, watch, detect, correct"), "{error}");
    }

    #[test]
    fn the_local_rung_leaves_time_for_its_work() {
        let policy = Policy { deadline: Duration::from_secs(8), ..Policy::default() };
        for (local_ms, at_s) in [(0, 6), (1000, 6), (2000, 4), (3500, 2), (60_000, 2)] {
            let at = policy.local_at(Duration::from_millis(local_ms));
            assert_eq!(at, Some(Duration::from_secs(at_s).max(Duration::from_secs(1))), "{local_ms}");
        }
        let fail = Policy { on_shortfall: OnShortfall::Fail, ..policy };
        assert_eq!((fail.local_at(Duration::ZERO), fail.hedges()), (None, None));
    }
}
