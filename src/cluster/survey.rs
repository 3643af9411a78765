//! Lists the worker processes of a cluster, for those who take no part in it.
//!
//! Invariant: it ends at its limit, with what it knows by then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;

use super::endpoint::{Endpoint, Security, Side, check_name};
use super::key_expr::Keys;
use super::link::{Link, Payload, Response, TrafficClass};
use super::master::INFO_LIMIT;
use super::random;
use super::registry::{Member, Registry};
use super::wire::{self, Answer, Call, MasterId, Request};
use crate::error::Result;

/// Interval after which a survey repeats its question.
const SURVEY_ROUND: Duration = Duration::from_millis(700);
const SURVEY_PAUSE: Duration = Duration::from_millis(50);
/// Time after which a cluster that looks empty counts as empty.
const ALONE: Duration = Duration::from_secs(1);

/// Queries all worker processes of a cluster without taking part in it. `wait`: limit for a connection and for answers.
///
/// # Errors
/// [`Error::Unavailable`](crate::Error::Unavailable) where no connection can be made; those of
/// [`Cluster::open`](super::Cluster::open) for bad options.
pub fn survey(
    endpoint: &Endpoint,
    cluster: &str,
    security: &Security,
    wait: Duration,
) -> Result<Vec<Member>> {
    check_name("name of the cluster", cluster)?;
    security.check(&[], std::slice::from_ref(endpoint))?;
    let keys = Keys::new(cluster);
    let link = Link::open(&Side::Connect(endpoint.clone()), security, None, Some(wait))?;
    let registry = Arc::new(Mutex::new(Registry::default()));
    let locked = |registry: &Mutex<Registry>| -> Vec<Member> {
        registry.lock().unwrap_or_else(PoisonError::into_inner).list()
    };
    let (seen, own) = (Arc::clone(&registry), keys.clone());
    link.watch(&keys.all_alive(), move |key, there| {
        if let Some(id) = own.parse_worker(key).filter(|_| there) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).seen(id, 0);
        }
    })?;
    let header = wire::pack(&Call { from: MasterId(u128::from(random())), request: Request::Info });
    let started = Instant::now();
    let end = started + wait;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let limit = left.min(SURVEY_ROUND);
        let (sender, over) = unbounded::<()>();
        let answers = Arc::clone(&registry);
        link.ask(
            &keys.all_info(),
            header.clone(),
            Payload::empty(),
            TrafficClass::Control,
            limit,
            move |said| {
                // Held until there will be no more answers.
                let _until_over = &sender;
                if let Response::Answer(Answer::Info(info), _) = said {
                    let id = (info.name.clone(), info.boot);
                    let mut registry = answers.lock().unwrap_or_else(PoisonError::into_inner);
                    registry.seen(id.clone(), 0);
                    registry.answered(&id, Ok(*info), Instant::now());
                }
            },
        )?;
        // The channel carries nothing; it only closes.
        let _ = over.recv_timeout(limit + INFO_LIMIT);
        // A question may get lost on a busy network, so processes that have not answered are asked again. The other side may
        // also have begun to listen so recently that it has not announced itself yet.
        let members = locked(&registry);
        let too_early = members.is_empty() && started.elapsed() < ALONE;
        if left.is_zero() || !too_early && members.iter().all(|member| member.info.is_ok()) {
            return Ok(members);
        }
        std::thread::sleep(SURVEY_PAUSE.min(left));
    }
}
