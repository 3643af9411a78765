#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

fn info(name: &str, boot: u64, devices: usize) -> HostInfo {
    let device = |i: usize| DeviceInfo {
        name: format!("cpu-{i}"),
        gpu: false,
        device: "1 thread".to_owned(),
        f64: true,
        adapter: None,
        lost: None,
        load: 0,
        filters: 0,
        filter_bytes: 0,
        done: 0,
        cancelled: 0,
        failed: 0,
    };
    HostInfo {
        name: name.to_owned(),
        boot,
        version: "1".to_owned(),
        uptime_s: 0,
        devices: (0..devices).map(device).collect(),
        memory_limit_bytes: 1,
        memory_used_bytes: 0,
        masters: 0,
        clock_unix_ms: 0,
        clock_us: 0,
        certificate_until_unix_s: None,
    }
}

fn id(name: &str, boot: u64) -> MemberId {
    (name.to_owned(), boot)
}

fn with(members: &[(&str, u64, usize)]) -> Registry {
    let mut registry = Registry::default();
    for (name, boot, devices) in members {
        registry.seen(id(name, *boot), 0);
        registry.answered(&id(name, *boot), Ok(info(name, *boot, *devices)), Instant::now());
    }
    registry
}

#[test]
fn claims_spread_over_machines_and_no_device_is_given_out_twice() {
    let mut registry = with(&[("a", 1, 2), ("b", 1, 1)]);
    let mut got: Vec<_> =
        (0..3).map(|_| registry.claim(1, None).unwrap()).map(|c| (c.id.0, c.device)).collect();
    assert_eq!(got[0].0, "a");
    assert_eq!(got[1].0, "b");
    got.sort();
    assert_eq!(got, [("a".to_owned(), 0), ("a".to_owned(), 1), ("b".to_owned(), 0)]);
    assert!(registry.claim(1, None).is_none());
    let at_b = registry.claim(3, Some("b")).unwrap();
    registry.release(&Claimed { group: 1, ..at_b });
    assert!(registry.claim(1, Some("a")).is_none());
    assert_eq!(registry.claim(1, Some("b")).map(|c| c.id), Some(id("b", 1)));
    assert_eq!((registry.devices("a"), registry.devices("c")), (Some(2), None));
    // Another pool may use what this one uses.
    assert_eq!(registry.claim(2, Some("b")).map(|c| (c.device, c.group)), Some((0, 2)));
}

#[test]
fn a_second_process_of_a_name_waits_until_the_first_is_gone_or_silent() {
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    let mut registry = with(&[("a", 7, 2), ("b", 1, 1), ("a", 3, 2)]);
    let claims = |registry: &mut Registry, group| -> Vec<MemberId> {
        std::iter::from_fn(|| registry.claim(group, Some("a"))).map(|claimed| claimed.id).collect()
    };
    assert_eq!(claims(&mut registry, 1), [id("a", 7), id("a", 7)]);
    assert_eq!((registry.devices("a"), registry.devices("b")), (Some(2), Some(1)));
    // It may have been started again: nothing is said before the first has answered once more.
    assert_eq!(registry.taken("a", 3), None);
    registry.answered(&id("a", 7), Ok(info("a", 7, 2)), later(1));
    let why = registry.taken("a", 3).unwrap();
    assert!(why.contains("another process serves as a (up 0 s): stop it"), "{why}");
    assert_eq!((registry.taken("a", 7), registry.taken("b", 1), registry.taken("a", 5)), (None, None, None));
    let problems = registry.list().into_iter().filter(|member| member.info.is_err());
    assert_eq!(problems.map(|member| member.boot).collect::<Vec<_>>(), [3]);
    // Silent, then back.
    assert_eq!(registry.suspects(later(3), Duration::from_secs(1)).len(), 3);
    registry.answered(&id("a", 3), Ok(info("a", 3, 2)), later(3));
    assert!(claims(&mut registry, 2).contains(&id("a", 3)));
    registry.answered(&id("a", 7), Ok(info("a", 7, 2)), later(3));
    assert_eq!(claims(&mut registry, 3), [id("a", 7), id("a", 7)]);
    registry.gone(&id("a", 7), 0);
    assert_eq!(claims(&mut registry, 3), [id("a", 3), id("a", 3)]);
    assert_eq!(registry.taken("a", 3), None);
}

#[test]
fn a_suspect_is_not_given_out_before_it_answers_anew() {
    let mut registry = with(&[("a", 1, 1)]);
    let (now, pause) = (Instant::now(), Duration::from_secs(1));
    assert_eq!(registry.due(now, pause).len(), 1);
    let claimed = registry.claim(1, None).unwrap();
    registry.release(&claimed);
    registry.suspect(&claimed.id);
    assert!(registry.claim(1, None).is_none());
    assert_eq!(registry.due(now, pause), [(id("a", 1), 0)]);
    assert!(registry.due(now, pause).is_empty(), "asked just now");
    assert_eq!(registry.due(now + pause, pause).len(), 1);
    registry.answered(&id("a", 1), Ok(info("a", 1, 1)), Instant::now());
    assert!(registry.claim(1, None).is_some());
}

#[test]
fn impostors_lost_devices_and_the_departed_are_not_given_out() {
    let mut registry = with(&[("a", 1, 1)]);
    registry.answered(&id("a", 1), Ok(info("b", 1, 1)), Instant::now());
    assert!(registry.claim(1, None).is_none());
    assert!(registry.list()[0].info.as_ref().unwrap_err().contains("says that it is b"));
    let mut lost = info("a", 1, 1);
    lost.devices[0].lost = Some("gone".to_owned());
    registry.answered(&id("a", 1), Ok(lost), Instant::now());
    assert!(registry.claim(1, None).is_none());
    assert_eq!(registry.due(Instant::now(), Duration::ZERO).len(), 1, "its device may come back");
    registry.answered(&id("a", 1), Ok(info("a", 1, 1)), Instant::now());
    registry.gone(&id("a", 1), 7);
    assert_eq!(registry.list().len(), 1, "another link's token");
    registry.gone(&id("a", 1), 0);
    assert!(registry.list().is_empty() && registry.claim(1, None).is_none());
}

#[test]
fn who_has_not_answered_for_a_while_is_suspected_until_it_answers() {
    let mut registry = with(&[("a", 1, 2), ("b", 1, 1)]);
    let (now, limit) = (Instant::now(), Duration::from_secs(1));
    let (a, b) = (registry.claim(1, Some("a")).unwrap(), registry.claim(1, Some("b")).unwrap());
    assert!(registry.suspects(now, limit).is_empty());
    let later = now + 2 * limit;
    registry.answered(&id("b", 1), Ok(info("b", 1, 1)), later);
    assert_eq!(registry.suspects(later, limit), [id("a", 1)]);
    assert!(registry.suspects(later, limit).is_empty(), "once");
    assert!(a.presence.is_silent() && !b.presence.is_silent() && !a.gone.is_cancelled());
    // A worker that takes its other device meanwhile is told as well.
    assert!(registry.claim(1, Some("a")).unwrap().presence.is_silent());
    registry.answered(&id("a", 1), Ok(info("a", 1, 2)), later);
    assert!(!a.presence.is_silent());
}

#[test]
fn time_in_which_nothing_was_asked_is_no_silence() {
    let mut registry = with(&[("a", 1, 1), ("b", 1, 1)]);
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let (later, limits) = (now + 6 * second, (second, 4 * second));
    registry.answered(&id("b", 1), Ok(info("b", 1, 1)), later);
    registry.excuse(later, 6 * second);
    assert!(registry.suspects(later, limits.0).is_empty());
    assert!(registry.fallen_silent(later, limits.1).is_empty());
    // From then on the time counts again, for both.
    let both = [id("a", 1), id("b", 1)];
    assert_eq!(registry.suspects(later + 2 * second, limits.0), both);
    let silent = registry.fallen_silent(later + 5 * second, limits.1);
    assert_eq!(silent, both.map(|id| (id, 0)));
}

#[test]
fn who_falls_silent_is_as_good_as_gone_until_it_answers() {
    let mut registry = with(&[("a", 1, 1), ("b", 1, 1)]);
    let (now, limit) = (Instant::now(), Duration::from_secs(4));
    let (held, other) = (registry.claim(1, Some("a")).unwrap(), registry.claim(1, Some("b")).unwrap());
    assert!(registry.fallen_silent(now, limit).is_empty() && !registry.is_silent(0));
    assert!(!registry.is_alone(0) && registry.is_alone(1));
    let later = now + Duration::from_secs(5);
    registry.answered(&id("b", 1), Ok(info("b", 1, 1)), later);
    assert_eq!(registry.fallen_silent(later, limit), [(id("a", 1), 0)]);
    assert!(registry.fallen_silent(later, limit).is_empty(), "once");
    assert!(held.gone.is_cancelled() && !other.gone.is_cancelled());
    // A process that was suspected before is reported as well.
    let mut suspected = with(&[("c", 1, 1)]);
    let waiting = suspected.claim(1, None).unwrap();
    suspected.suspect(&id("c", 1));
    assert_eq!(suspected.fallen_silent(later, limit).len(), 1);
    assert!(waiting.gone.is_cancelled());
    registry.release(&held);
    assert!(registry.claim(1, Some("a")).is_none());
    registry.answered(&id("a", 1), Ok(info("a", 1, 1)), later);
    assert!(!registry.claim(1, Some("a")).unwrap().gone.is_cancelled());
    registry.forget_link(0);
    assert!(registry.list().is_empty() && registry.is_silent(0) && other.gone.is_cancelled());
    registry.seen(id("a", 1), 0);
    assert!(registry.is_alone(0), "visible, but it has never answered");
}
