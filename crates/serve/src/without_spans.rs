//! What exports spans, in a build without feature `otlp`: nothing.

use fcdcc::{Error, Result};

use crate::access::Entry;
use crate::traces::Traces;

/// There is none.
pub(crate) enum Spans {}

impl Spans {
    pub(crate) fn new(traces: &Traces) -> Result<Self> {
        Err(Error::Unavailable {
            what: format!("exporting spans to {}", traces.endpoint),
            help: "this build lacks it: build it with the feature `otlp`".into(),
        })
    }

    pub(crate) fn add(&self, _: &Entry<'_>) {
        match *self {}
    }

    pub(crate) fn end(&self) {
        match *self {}
    }
}
