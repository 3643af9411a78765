//! What a side that connects is told by the side that listens: whether it is taken, and why not.
//!
//! Access rules drop the messages of unlisted processes silently. An unlisted machine would therefore wait forever, and no
//! operator would see why. So every process that connects sends its name each second, under a key that all holders of
//! certificates may use. Both sides log a refusal once, and count it.
//!
//! Relevant if you want to change when a process is refused. Invariant: an answer changes only what is logged and counted.
//! The rules of the link decide access, and the registry assigns devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::endpoint::check_name;
use super::link::{Incoming, Link, Payload, Response, TrafficClass};
use super::no_thread;
use super::wire::{self, Answer, Hello, Refusal, WireError};
use crate::error::Result;

/// Interval between two questions.
const PAUSE: Duration = Duration::from_secs(1);
/// Time for an answer.
const LIMIT: Duration = Duration::from_millis(900);
/// A refused process that has not asked again for this time is no longer listed.
const KEPT: Duration = Duration::from_secs(10);
/// Maximum number of refused processes that are listed; of further ones, the oldest is dropped.
const MOST_LISTED: usize = 256;
/// Questions that wait for an answer; further ones are dropped, and repeated by those who asked.
const MOST_WAITING: usize = 64;

/// A process that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// On the side that refuses, the name that the process gives; on the other side, the endpoint that it connects to.
    pub name: String,
    /// Why, and what to change.
    pub why: String,
}

/// The processes that this side refuses. Clones share one list.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    /// By name and boot number: the reason, and when the process last asked.
    rows: BTreeMap<(String, u64), (String, Instant)>,
    count: u64,
}

impl Refusals {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a refusal; true if the process was not refused before for this reason.
    fn note(&self, who: (String, u64), why: &str, now: Instant) -> bool {
        let mut book = self.book();
        let is_new = book.rows.get(&who).is_none_or(|(before, _)| before != why);
        if book.rows.len() >= MOST_LISTED && !book.rows.contains_key(&who) {
            let oldest = book.rows.iter().min_by_key(|(_, (_, asked))| *asked).map(|(who, _)| who.clone());
            oldest.map(|oldest| book.rows.remove(&oldest));
        }
        book.rows.insert(who, (why.to_owned(), now));
        book.count += u64::from(is_new);
        is_new
    }

    /// Forgets a process that is taken.
    fn forget(&self, who: &(String, u64)) {
        self.book().rows.remove(who);
    }

    /// The processes that were refused a short time ago.
    pub(super) fn listed(&self) -> Vec<Refused> {
        let book = self.book();
        let recent = book.rows.iter().filter(|(_, (_, asked))| asked.elapsed() < KEPT);
        recent.map(|((name, _), (why, _))| Refused { name: name.clone(), why: why.clone() }).collect()
    }

    /// Number of processes refused since the start, each counted once for each reason.
    pub(super) fn count(&self) -> u64 {
        self.book().count
    }
}

/// Answers the processes that connect to `link`: `judge` gives the reason of a refusal. `whom` names their kind in logs.
///
/// # Errors
/// [`Error::Unavailable`] where the system has no thread left.
pub(super) fn answer(
    link: &Link,
    key: &str,
    whom: &'static str,
    refusals: &Refusals,
    judge: impl Fn(&Hello) -> std::result::Result<(), String> + Send + 'static,
) -> Result<()> {
    let (sender, waiting) = bounded::<Incoming>(MOST_WAITING);
    let refusals = refusals.clone();
    // Ends with the link, which holds the sender. Answering may wait for a peer that takes nothing.
    let answering = move || {
        for incoming in waiting {
            let Some((who, verdict)) = judged(&incoming.header, &judge) else { continue };
            let answer = match verdict {
                Ok(()) => {
                    refusals.forget(&who);
                    Answer::Done
                }
                Err(why) => {
                    if refusals.note(who.clone(), &why, Instant::now()) {
                        tracing::warn!(name = who.0, why, "{whom} refused");
                    }
                    Answer::refused(Refusal::Unwanted, why)
                }
            };
            if let Err(error) = incoming.answer(&answer, Payload::empty()) {
                tracing::debug!(error, "not answered");
            }
        }
    };
    std::thread::Builder::new().name("fcdcc hello".to_owned()).spawn(answering).map_err(no_thread)?;
    // A process without an answer asks again.
    link.serve(key, move |incoming| drop(sender.try_send(incoming)))
}

type Verdict = std::result::Result<(), String>;

/// Who asks, and the answer; `None` for what is no question.
fn judged(header: &[u8], judge: impl Fn(&Hello) -> Verdict) -> Option<((String, u64), Verdict)> {
    match wire::unpack::<Hello>(header) {
        Ok(hello) => {
            check_name("name", &hello.name).ok()?;
            let verdict = judge(&hello);
            Some(((hello.name, hello.boot), verdict))
        }
        // Its name cannot be read.
        Err(error @ WireError::Version { theirs }) => {
            Some((("of another release".to_owned(), theirs.into()), Err(error.to_string())))
        }
        Err(WireError::Malformed(_)) => None,
    }
}

/// The question of a process that connects, over one link.
pub(super) struct Greeting {
    key: String,
    hello: Vec<u8>,
    asked: Option<Instant>,
    refused: RefusedBy,
}

/// Why the other side of a link does not take this process, if it does not. Clones share one state.
#[derive(Clone, Debug)]
pub(super) struct RefusedBy {
    /// Where the link leads, readable.
    place: String,
    why: Arc<Mutex<Option<String>>>,
}

impl RefusedBy {
    /// Records an answer, `None` where this process is taken; true if it differs from the one before.
    fn note(&self, why: Option<&str>) -> bool {
        let mut before = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = before.as_deref() != why;
        if is_new {
            *before = why.map(str::to_owned);
        }
        is_new
    }

    /// The refusal, if there is one.
    pub(super) fn listed(&self) -> Option<Refused> {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Refused { name: self.place.clone(), why })
    }
}

impl Greeting {
    pub(super) fn new(link: &Link, key: String, hello: &Hello) -> Self {
        let refused = RefusedBy { place: link.place().to_owned(), why: Arc::default() };
        Self { key, hello: wire::pack(hello), asked: None, refused }
    }

    /// What the other side says.
    pub(super) fn refused(&self) -> RefusedBy {
        self.refused.clone()
    }

    /// Asks if it is time to. Logs an answer that differs from the one before.
    pub(super) fn ask(&mut self, link: &Link, now: Instant) {
        if self.asked.is_some_and(|asked| now.saturating_duration_since(asked) < PAUSE) {
            return;
        }
        let refused = self.refused.clone();
        let understand = move |said| {
            let why = match said {
                Response::Answer(Answer::Done, _) => None,
                Response::Answer(Answer::Refused { text, .. }, _) | Response::Garbage(text) => Some(text),
                Response::Answer(..) | Response::Nothing(_) => return,
            };
            if refused.note(why.as_deref()) {
                let place = &refused.place;
                if let Some(why) = why {
                    tracing::warn!(place, why, "refused by the other side");
                } else {
                    tracing::info!(place, "taken by the other side");
                }
            }
        };
        let asked = link.ask(
            &self.key,
            self.hello.clone(),
            Payload::empty(),
            TrafficClass::Control,
            LIMIT,
            understand,
        );
        // Without a connection nothing was asked, and there is no refusal.
        self.asked = asked.is_ok().then_some(now);
        if asked.is_err() {
            self.refused.note(None);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn who(number: u64) -> (String, u64) {
        ("alpha".to_owned(), number)
    }

    #[test]
    fn refusals_are_news_once_and_the_list_is_bounded() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.note(who(0), "one", now) && !refusals.note(who(0), "one", now));
        assert!(refusals.note(who(0), "two", now), "for another reason");
        assert_eq!(refusals.listed(), [Refused { name: "alpha".to_owned(), why: "two".to_owned() }]);
        refusals.forget(&who(0));
        assert!(refusals.listed().is_empty());
        for number in 0..2 * MOST_LISTED as u64 {
            refusals.note(who(number), "one", now + Duration::from_millis(number));
        }
        assert_eq!(refusals.book().rows.len(), MOST_LISTED);
        assert!(refusals.book().rows.contains_key(&who(2 * MOST_LISTED as u64 - 1)));
        assert!(!refusals.book().rows.contains_key(&who(0)));
        assert_eq!(refusals.count(), 2 + 2 * MOST_LISTED as u64);
    }

    #[test]
    fn questions_are_judged_and_anything_else_is_dropped() {
        let hello =
            |name: &str| wire::pack(&Hello { name: name.to_owned(), boot: 3, release: "1".to_owned() });
        let judge = |hello: &Hello| if hello.name == "beta" { Err("no".to_owned()) } else { Ok(()) };
        let named = |name: &str| (name.to_owned(), 3);
        assert_eq!(judged(&hello("alpha"), judge), Some((named("alpha"), Ok(()))));
        assert_eq!(judged(&hello("beta"), judge), Some((named("beta"), Err("no".to_owned()))));
        assert_eq!(judged(&hello("no/key"), judge), None);
        assert_eq!(judged(b"anything", judge), None);
        let mut other = hello("alpha");
        other[4] = 99;
        let (_, verdict) = judged(&other, judge).unwrap();
        assert!(verdict.unwrap_err().contains("version 99"));
    }
}
