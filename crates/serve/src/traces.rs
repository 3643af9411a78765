//! Where spans of requests go, and which requests have one.
//!
//! Relevant if you want to see requests in a tracing system. Needs feature `otlp`.
//!
//! Invariant: a request whose client decided on sampling follows that decision.

use fcdcc::{Error, Result};

/// A collector of OTLP.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// Its address of gRPC, such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// The share of requests without a `traceparent` that begin a trace, 0 to 1.
    pub ratio: f64,
}

impl Traces {
    /// # Errors
    /// [`Error::InvalidParameter`] for a share that is none.
    pub(crate) fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.ratio) {
            return Ok(());
        }
        Err(Error::invalid("share of traced requests", self.ratio, "give a number from 0 to 1"))
    }
}
