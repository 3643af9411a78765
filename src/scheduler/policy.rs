//! How long to wait and what to do when waiting will not help.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// What to do when fewer results than the code needs can come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShortfall {
    /// Report the shortfall.
    Fail,
    /// Give missing subtasks to workers that live, and if that does not help compute the layer locally.
    #[default]
    Redispatch,
    /// Compute the layer locally.
    Local,
}

impl OnShortfall {
    const NAMES: [(&'static str, Self); 3] =
        [("fail", Self::Fail), ("redispatch", Self::Redispatch), ("local", Self::Local)];
}

impl fmt::Display for OnShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, value)| value == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for OnShortfall {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            Error::invalid("on-shortfall", format!("{text:?}"), "use fail, redispatch or local")
        })
    }
}

/// The times of one layer's run, all counted from its first dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// When the run fails if it has not decoded.
    pub deadline: Duration,
    /// What to do when fewer results than needed can come.
    pub on_shortfall: OnShortfall,
}

impl Default for Policy {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), on_shortfall: OnShortfall::default() }
    }
}

impl Policy {
    /// How often one subtask may be handed out in all.
    pub const MAX_ATTEMPTS: usize = 3;

    /// When workers that merely have not answered are given up on in favour of others: half the deadline.
    #[must_use]
    pub fn redispatch_at(&self) -> Option<Duration> {
        (self.on_shortfall == OnShortfall::Redispatch).then(|| self.deadline / 2)
    }

    /// When the layer is computed locally although workers may still answer: three quarters of the deadline.
    #[must_use]
    pub fn local_at(&self) -> Option<Duration> {
        (self.on_shortfall != OnShortfall::Fail).then(|| self.deadline / 4 * 3)
    }
}
