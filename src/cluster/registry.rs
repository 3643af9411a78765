//! The worker processes of a cluster, and the devices that are claimed.
//!
//! Pure bookkeeping: links report tokens and answers, workers claim devices. All processes are queried regularly. A process
//! that does not answer counts as gone, whatever the engine reports. A process whose worker has just failed is not assigned
//! before it has answered again.
//!
//! Invariant: at most one worker of a group claims a device at a time. A group is the set of workers of one pool; several
//! pools of a master may use the same devices.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rates::{LinkMeter, LinkSpeed};
use super::wire::{DeviceInfo, HostInfo};
use crate::worker::{CancelToken, Presence};

/// Machine name and boot number.
pub(super) type MemberId = (String, u64);

/// A worker process as this master sees it.
#[derive(Debug)]
struct Record {
    link: usize,
    /// When it became visible.
    seen: Instant,
    state: State,
    /// Pairs (group, device).
    claimed: HashSet<(u64, u32)>,
    asked: Option<Instant>,
    answered: Option<Instant>,
    /// Cancelled when the process leaves or falls silent, which ends every wait for it.
    gone: CancelToken,
    /// Silent between a short time without an answer and the next one.
    presence: Presence,
    meter: Arc<LinkMeter>,
}

#[derive(Debug)]
enum State {
    /// It has not described itself yet, or has to do so again.
    Asking,
    Ready(HostInfo),
    /// It cannot be used.
    Problem(String),
}

/// A worker process in a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The machine's name.
    pub machine: String,
    /// Random number drawn when the process started.
    pub boot: u64,
    /// Its description, or why it cannot be used.
    pub info: Result<HostInfo, String>,
    /// Number of this master's workers on its devices.
    pub claimed: usize,
}

/// A device that was claimed.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) id: MemberId,
    pub(super) link: usize,
    pub(super) device: u32,
    pub(super) group: u64,
    pub(super) info: DeviceInfo,
    /// Cancelled when the machine leaves or falls silent.
    pub(super) gone: CancelToken,
    /// Whether the machine answers.
    pub(super) presence: Presence,
    /// Measures the link to the machine.
    pub(super) meter: Arc<LinkMeter>,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    members: BTreeMap<MemberId, Record>,
}

impl Registry {
    /// Records that a token became visible. The first link that shows it is used.
    pub(super) fn seen(&mut self, id: MemberId, link: usize) {
        let fresh = Record {
            link,
            seen: Instant::now(),
            state: State::Asking,
            claimed: HashSet::new(),
            asked: None,
            answered: None,
            gone: CancelToken::new(),
            presence: Presence::default(),
            meter: Arc::default(),
        };
        self.members.entry(id).or_insert(fresh);
    }

    /// Records that a token vanished.
    pub(super) fn gone(&mut self, id: &MemberId, link: usize) {
        if self.members.get(id).is_some_and(|member| member.link == link)
            && let Some(member) = self.members.remove(id)
        {
            member.gone.cancel();
        }
    }

    /// Forgets all processes seen over a link that reconnects; they have to be seen again.
    pub(super) fn forget_link(&mut self, link: usize) {
        for member in self.members.values().filter(|member| member.link == link) {
            member.gone.cancel();
        }
        self.members.retain(|_, member| member.link != link);
    }

    /// Whether no process that answers is visible over a link.
    pub(super) fn is_silent(&self, link: usize) -> bool {
        let answers = |member: &Record| member.link == link && matches!(member.state, State::Ready(_));
        !self.members.values().any(answers)
    }

    /// Whether no process that has ever answered is visible over a link.
    pub(super) fn is_alone(&self, link: usize) -> bool {
        !self.members.values().any(|member| member.link == link && member.answered.is_some())
    }

    /// Does not count the last `pause` as silence of any process: nothing was asked meanwhile, since the thread that asks got
    /// no core.
    pub(super) fn excuse(&mut self, now: Instant, pause: Duration) {
        for answered in self.members.values_mut().filter_map(|member| member.answered.as_mut()) {
            *answered = (*answered + pause).min(now);
        }
    }

    /// Marks processes that have not answered for `limit` as silent; returns those that are so since the last call.
    pub(super) fn suspects(&mut self, now: Instant, limit: Duration) -> Vec<MemberId> {
        let late = |member: &Record| {
            let silent = member.answered.is_some_and(|last| now.saturating_duration_since(last) > limit);
            silent && !member.presence.is_silent()
        };
        let suspects = self.members.iter().filter(|(_, member)| late(member));
        let marked = suspects.map(|(id, member)| {
            member.presence.set_silent(true);
            id.clone()
        });
        marked.collect()
    }

    /// Marks processes that have not answered for `limit` as gone; returns each with its link once per silence.
    pub(super) fn fallen_silent(&mut self, now: Instant, limit: Duration) -> Vec<(MemberId, usize)> {
        let mut silent = Vec::new();
        for (id, member) in &mut self.members {
            let late = member.answered.is_some_and(|last| now.saturating_duration_since(last) > limit);
            if late {
                member.answered = None;
                member.state = State::Problem(format!("it has not answered for {limit:?}"));
                std::mem::take(&mut member.gone).cancel();
                silent.push((id.clone(), member.link));
            }
        }
        silent
    }

    /// Records the answer of a process, valid or not. Returns the problem with it, if that is new.
    pub(super) fn answered(
        &mut self,
        id: &MemberId,
        answer: Result<HostInfo, String>,
        now: Instant,
    ) -> Option<String> {
        let member = self.members.get_mut(id)?;
        member.answered = Some(now);
        if member.presence.is_silent() {
            tracing::info!(machine = id.0, "answers again");
            member.presence.set_silent(false);
        }
        let state = match answer {
            Ok(info) if (&info.name, info.boot) == (&id.0, id.1) => match info.check() {
                Ok(()) => State::Ready(info),
                Err(error) => State::Problem(error.to_string()),
            },
            Ok(info) => State::Problem(format!("it says that it is {} (boot {:x})", info.name, info.boot)),
            Err(problem) => State::Problem(problem),
        };
        let problem = |state: &State| match state {
            State::Problem(problem) => Some(problem.clone()),
            State::Asking | State::Ready(_) => None,
        };
        let before = problem(&member.state);
        member.state = state;
        problem(&member.state).filter(|now| before.as_ref() != Some(now))
    }

    /// Records that a worker of a process failed: its devices cannot be claimed until it answers again.
    pub(super) fn suspect(&mut self, id: &MemberId) {
        if let Some(member) = self.members.get_mut(id) {
            member.state = State::Asking;
            member.asked = None;
        }
    }

    /// Processes to query now, as (member, link); each becomes due every `pause`.
    pub(super) fn due(&mut self, now: Instant, pause: Duration) -> Vec<(MemberId, usize)> {
        let mut asking = Vec::new();
        for (id, member) in &mut self.members {
            let waited = member.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause);
            if waited {
                member.asked = Some(now);
                asking.push((id.clone(), member.link));
            }
        }
        asking
    }

    /// Claims a device that is free for `group`, of `machine` or of the machine with the fewest claims.
    pub(super) fn claim(&mut self, group: u64, machine: Option<&str>) -> Option<Claimed> {
        let may = |id: &MemberId| {
            machine.is_none_or(|machine| id.0 == machine) && self.holder(&id.0, id.1).is_none()
        };
        let free = |member: &Record| -> Option<(u32, DeviceInfo)> {
            let State::Ready(info) = &member.state else { return None };
            let usable = |(at, device): &(usize, &DeviceInfo)| {
                device.lost.is_none() && !member.claimed.contains(&(group, *at as u32))
            };
            let (at, device) = info.devices.iter().enumerate().find(usable)?;
            Some((at as u32, device.clone()))
        };
        let claims = |member: &Record| member.claimed.iter().filter(|(of, _)| *of == group).count();
        let candidates = self.members.iter().filter(|(id, _)| may(id));
        let (id, (device, info)) = candidates
            .filter_map(|(id, member)| Some((id, member, free(member)?)))
            .min_by_key(|(_, member, _)| claims(member))
            .map(|(id, _, device)| (id.clone(), device))?;
        let member = self.members.get_mut(&id)?;
        member.claimed.insert((group, device));
        let (link, gone, presence) = (member.link, member.gone.clone(), member.presence.clone());
        let meter = Arc::clone(&member.meter);
        Some(Claimed { id, link, device, group, info, gone, presence, meter })
    }

    pub(super) fn release(&mut self, claimed: &Claimed) {
        if let Some(member) = self.members.get_mut(&claimed.id) {
            member.claimed.remove(&(claimed.group, claimed.device));
        }
    }

    /// Why a process that is visible cannot serve as `machine`: another one does, which has answered since.
    pub(super) fn taken(&self, machine: &str, boot: u64) -> Option<String> {
        let own = self.members.get(&(machine.to_owned(), boot))?;
        let (up, answered) = self.holder(machine, boot)?;
        // One that was started again is visible before its predecessor is noticed to be gone.
        let since = answered.is_some_and(|answered| answered > own.seen);
        since.then(|| {
            format!(
                "another process serves as {machine} (up {up} s): stop it, or give this one a name (and a certificate) of \
                 its own"
            )
        })
    }

    /// Uptime in seconds and last answer of the process that serves as `machine`, if it became visible before the one with
    /// this boot number and answers.
    fn holder(&self, machine: &str, boot: u64) -> Option<(u64, Option<Instant>)> {
        let own = (self.members.get(&(machine.to_owned(), boot))?.seen, boot);
        let range = (machine.to_owned(), 0)..=(machine.to_owned(), u64::MAX);
        let mut earlier = self.members.range(range).filter(|(id, other)| (other.seen, id.1) < own);
        earlier.find_map(|(_, other)| match &other.state {
            State::Ready(info) if !other.presence.is_silent() => Some((info.uptime_s, other.answered)),
            _ => None,
        })
    }

    /// The link over which a process is visible.
    pub(super) fn link(&self, machine: &str, boot: u64) -> Option<usize> {
        self.members.get(&(machine.to_owned(), boot)).map(|member| member.link)
    }

    /// The meter of the link to a process.
    pub(super) fn meter(&self, id: &MemberId) -> Option<Arc<LinkMeter>> {
        self.members.get(id).map(|member| Arc::clone(&member.meter))
    }

    /// The measured rates of the links to all machines, of the process that serves as each.
    pub(super) fn link_speeds(&self) -> BTreeMap<String, LinkSpeed> {
        let serving = self.members.iter().filter(|(id, _)| self.holder(&id.0, id.1).is_none());
        serving.map(|(id, member)| (id.0.clone(), member.meter.speed())).collect()
    }

    /// Number of devices of a machine, once it has answered.
    pub(super) fn devices(&self, machine: &str) -> Option<usize> {
        let ready =
            self.members.iter().filter(|(id, _)| id.0 == machine && self.holder(machine, id.1).is_none());
        let counts: Vec<usize> = ready
            .filter_map(|(_, member)| match &member.state {
                State::Ready(info) => Some(info.devices.len()),
                _ => None,
            })
            .collect();
        (!counts.is_empty()).then(|| counts.iter().sum())
    }

    pub(super) fn list(&self) -> Vec<Member> {
        let row = |(id, member): (&MemberId, &Record)| Member {
            machine: id.0.clone(),
            boot: id.1,
            info: match &member.state {
                State::Ready(info) => self.taken(&id.0, id.1).map_or_else(|| Ok(info.clone()), Err),
                State::Asking => Err("it has not answered yet".to_owned()),
                State::Problem(problem) => Err(problem.clone()),
            },
            claimed: member.claimed.len(),
        };
        self.members.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests;
