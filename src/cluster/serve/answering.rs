//! How the results of one task are answered.

use std::time::Duration;

use super::super::link::bytes_of;
use super::super::narrow::{Copies, Cut, cut};
use super::super::rates::clock_us;
use super::super::wire::{Answer, MasterId, Progress};
use super::outbox::{Outbox, Results};
use super::tasks::Asker;
use crate::array::{Values, WireFormat};
use crate::worker::{Phase, PhaseClock};

/// Where the results of a task go.
pub(super) struct Answering {
    pub(super) key: (MasterId, u64),
    /// Results larger than this are kept until they are fetched.
    pub(super) inline_bytes: usize,
    /// The format wanted for results of f32.
    pub(super) results: WireFormat,
    pub(super) asker: Asker,
    pub(super) outbox: Outbox,
    /// Measures the task since it was accepted.
    pub(super) phases: PhaseClock,
}

impl Answering {
    /// Sends a result, or says that it is there to be fetched. The time that this takes is not computing.
    ///
    /// # Errors
    /// The text of the refusal where there is no memory to keep it.
    pub(super) fn send(
        &self,
        kept: &Results,
        copies: &mut Copies,
        index: usize,
        values: Values,
    ) -> Result<(), String> {
        let times = self.phases.so_far();
        let us = |time: Duration| time.as_micros() as u64;
        let progress =
            Progress { at_us: clock_us(), queued_us: us(times.queue), computed_us: us(times.compute) };
        self.phases.enter(Phase::Receive);
        let format = self.results.of(values.dtype());
        let bytes = bytes_of(values);
        // The cast is safe: `Spec::subtask` and `check_signature` bound the number of results.
        let index = index as u32;
        if bytes.len() <= self.inline_bytes {
            let Cut { payload, crc, format } = cut(copies, bytes, format);
            let answer = Answer::Part { index, crc, format, progress };
            self.outbox.send(&self.asker.current(), answer, payload);
        } else {
            let size = bytes.len() as u64;
            kept.keep((self.key.0, self.key.1, index), bytes)?;
            self.outbox.say(&self.asker.current(), Answer::Ready { index, bytes: size, progress });
        }
        self.phases.enter(Phase::Compute);
        Ok(())
    }
}
