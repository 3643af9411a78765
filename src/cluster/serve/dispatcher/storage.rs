//! Filters on devices, and the memory for filters and slabs.
//!
//! Invariant: whatever is kept has a reservation, which filters share if subtasks of several shapes share them;
//! filters that no master uses make room for others, the least recently used first.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Dispatcher, Held, MOST_RECENT, Recent};
use crate::array::{DType, Values, WireFormat};
use crate::cluster::budget::{Budget, Reservation};
use crate::cluster::link::{Incoming, Payload};
use crate::cluster::serve::device::{Filters, Job, Sharing};
use crate::cluster::serve::reassembly::Reassembly;
use crate::cluster::wire::{Answer, ContentId, MasterId, Refusal, Spec};

impl Dispatcher {
    pub(super) fn install(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        device: u32,
        content: ContentId,
        spec: Spec,
        payload: &Payload,
    ) -> Result<(), (Refusal, String)> {
        let at = self.device(device)?;
        let shape = spec.subtask().map_err(|e| (Refusal::Malformed, e.to_string()))?;
        let bytes = (shape.filter_elems() * spec.dtype.size_bytes()) as u64;
        let outbox = self.masters[&from].outbox.clone();
        if self.is_held((at, content), from, incoming) {
            return Ok(());
        }
        let own = self.uploads.remove(&(from, content)).filter(|upload| upload.total() == bytes);
        let (values, reservation) = if payload.len() > 0 {
            if payload.len() as u64 != bytes {
                return Err((Refusal::Malformed, format!("{} of {bytes} bytes of filters", payload.len())));
            }
            drop(own);
            let mut object = self.room(bytes, &spec)?;
            object.accept(0, payload, 0, WireFormat::Full).map_err(|text| (Refusal::Malformed, text))?;
            let (values, reservation) = named(object, content)?;
            (Some(values), reservation)
        } else {
            match own {
                Some(upload) if upload.received() == bytes => {
                    let (values, reservation) = named(upload, content)?;
                    self.keep_for_others(content, &values, bytes);
                    (Some(values), reservation)
                }
                Some(upload) => {
                    outbox.say(incoming, Answer::Send { from: upload.received() });
                    self.uploads.insert((from, content), upload);
                    return Ok(());
                }
                None if self.common.cache.as_ref().is_some_and(|cache| cache.has(content, bytes)) => {
                    (None, self.reserve(bytes)?)
                }
                None if self.recent(content).is_some() => {
                    // Making room may drop them.
                    let values = self.recent(content).cloned();
                    (values, self.reserve(bytes)?)
                }
                None => {
                    let upload = self.room(bytes, &spec)?;
                    self.uploads.insert((from, content), upload);
                    outbox.say(incoming, Answer::Send { from: 0 });
                    return Ok(());
                }
            }
        };
        let held = Held {
            spec: spec.clone(),
            holders: HashSet::from([from]),
            reservation: Arc::new(reservation),
            shared: false,
            used: Instant::now(),
            installing: Some(vec![(from, Arc::clone(incoming))]),
        };
        self.held.insert((at, content), held);
        self.devices[at].queue(Job::Install(Box::new(Filters { content, spec, shape, values })));
        Ok(())
    }

    /// Keeps complete filters for a while where other devices may need them too, and there is memory for them.
    fn keep_for_others(&mut self, content: ContentId, values: &Values, bytes: u64) {
        if self.devices.len() < 2 {
            return;
        }
        if self.recent.len() == MOST_RECENT {
            self.recent.pop_front();
        }
        if let Some(reservation) = self.common.budget.reserve(bytes) {
            let (values, since) = (values.clone(), Instant::now());
            self.recent.push_back(Recent { content, values, since, _reservation: reservation });
        }
    }

    /// Filters that were complete of late.
    fn recent(&self, content: ContentId) -> Option<&Values> {
        self.recent.iter().find(|recent| recent.content == content).map(|recent| &recent.values)
    }

    /// Whether a device holds filters, or will: then the master is one of their holders, and is answered.
    fn is_held(&mut self, at: (usize, ContentId), from: MasterId, incoming: &Arc<Incoming>) -> bool {
        let Some(held) = self.held.get_mut(&at) else { return false };
        held.used = Instant::now();
        held.holders.insert(from);
        match &mut held.installing {
            None => self.masters[&from].outbox.say(incoming, Answer::Installed),
            Some(waiting) => waiting.push((from, Arc::clone(incoming))),
        }
        true
    }

    /// Lets a device use the filters `of` for a subtask of another shape.
    pub(super) fn share(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        device: u32,
        of: ContentId,
        spec: Spec,
    ) -> Result<(), (Refusal, String)> {
        let at = self.device(device)?;
        let shape = spec.subtask().map_err(|e| (Refusal::Malformed, e.to_string()))?;
        let content = ContentId::shared(&spec, of);
        if self.is_held((at, content), from, incoming) {
            return Ok(());
        }
        let same = |held: &&Held| {
            let filters = held.spec.subtask().is_ok_and(|subtask| subtask.has_filters_of(&shape));
            filters && held.spec.dtype == spec.dtype && held.installing.is_none()
        };
        let Some(held) = self.held.get(&(at, of)).filter(same) else {
            self.masters[&from].outbox.say(incoming, Answer::Send { from: 0 });
            return Ok(());
        };
        let held = Held {
            reservation: Arc::clone(&held.reservation),
            spec,
            holders: HashSet::from([from]),
            shared: true,
            used: Instant::now(),
            installing: Some(vec![(from, Arc::clone(incoming))]),
        };
        self.held.insert((at, content), held);
        self.devices[at].queue(Job::Share(Box::new(Sharing { content, of, shape })));
        Ok(())
    }

    /// Reserves memory. Makes room by dropping, in this order, copies of filters and parts for other devices, shared slabs that
    /// are not in use, incomplete filters and parts of masters that are gone, and filters, then parts, that no master uses any
    /// more, the least recently used first.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Reservation, (Refusal, String)> {
        let budget: Budget = self.common.budget.clone();
        loop {
            if let Some(reservation) = budget.reserve(bytes) {
                return Ok(reservation);
            }
            let again = self.recent.pop_front().is_some() || self.common.slabs.make_room();
            if again || self.parts.make_room(&self.visible) {
                continue;
            }
            let visible = &self.visible;
            let before = self.uploads.len();
            self.uploads.retain(|(master, _), _| visible.contains(master));
            if self.uploads.len() < before {
                continue;
            }
            let free = |held: &&Held| held.holders.is_empty() && held.installing.is_none();
            let oldest = self.held.iter().filter(|(_, held)| free(held)).min_by_key(|(_, held)| held.used);
            if let Some((&(device, content), _)) = oldest {
                self.drop_filters(device, content);
            } else if let Some(unused) = self.parts.unused() {
                self.drop_part(unused);
            } else {
                return Err((Refusal::Memory, budget.refuse(bytes)));
            }
        }
    }

    /// Reserves memory for filters.
    pub(super) fn room(&mut self, bytes: u64, spec: &Spec) -> Result<Reassembly, (Refusal, String)> {
        let reservation = self.reserve(bytes)?;
        let room = Reassembly::new(spec.dtype, reservation, Values::zeros);
        room.map(|room| room.of_filters(spec)).ok_or_else(|| not_whole(bytes, spec.dtype))
    }

    /// Reserves memory for slabs, in a reused buffer if there is one.
    pub(super) fn room_for_slabs(
        &mut self,
        bytes: u64,
        dtype: DType,
    ) -> Result<Reassembly, (Refusal, String)> {
        let reservation = self.reserve(bytes)?;
        let spare = &self.common.spare;
        let room = Reassembly::new(dtype, reservation, |dtype, elems| spare.take_values(dtype, elems));
        room.ok_or_else(|| not_whole(bytes, dtype))
    }

    pub(super) fn drop_filters(&mut self, device: usize, content: ContentId) {
        if let Some(held) = self.held.remove(&(device, content)) {
            self.count(device, &held, false);
            self.devices[device].queue(Job::Remove(content));
        }
    }

    /// Adds filters to the statistics of a device, or subtracts them (`more` is false). Shared ones have no bytes of their own.
    pub(super) fn count(&self, device: usize, held: &Held, more: bool) {
        if held.installing.is_some() {
            return;
        }
        let stats = &self.devices[device].stats;
        let bytes = if held.shared { 0 } else { held.reservation.bytes() };
        if more {
            stats.filters.fetch_add(1, Ordering::Relaxed);
            stats.filter_bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            stats.filters.fetch_sub(1, Ordering::Relaxed);
            stats.filter_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn not_whole(bytes: u64, dtype: DType) -> (Refusal, String) {
    (Refusal::Malformed, format!("{bytes} bytes are no whole number of {dtype} elements"))
}

/// The elements of complete filters whose hash matches `content`.
fn named(object: Reassembly, content: ContentId) -> Result<(Values, Reservation), (Refusal, String)> {
    match object.content() {
        Some(found) if found == content => {
            object.finish().map_err(|_| (Refusal::Malformed, "incomplete filters".to_owned()))
        }
        _ => {
            let text =
                format!("these filters are not {content}: changed on the way, or sent under a wrong name");
            Err((Refusal::Malformed, text))
        }
    }
}
