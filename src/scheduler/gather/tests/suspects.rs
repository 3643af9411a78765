//! Machines that do not answer.

use super::*;

/// Attempts on machines that do not answer count as nothing for as long as others can compute instead, and for what they are
/// once nothing else is left.
#[test]
fn the_suspected_are_replaced_as_far_as_needed_and_waited_for_at_last() {
    let suspect = |g: &mut Gather<_>, subtasks: &[usize]| {
        for &subtask in subtasks {
            g.handle(SECOND, Event::Suspected { subtask: SubtaskId(subtask) });
        }
    };
    let mut g = gather(OnShortfall::Redispatch, 6, 4);
    suspect(&mut g, &[0, 1]);
    assert_eq!(actions(&mut g), [], "four others suffice");
    suspect(&mut g, &[2]);
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(0))]);
    // The copy counts, and so does what a suspected machine delivers after all.
    for subtask in [3, 4, 1, 0] {
        deliver(&mut g, subtask);
    }
    assert_eq!(actions(&mut g), [Action::Decode]);

    // No other worker takes the subtasks: the suspected are waited for, until they fail for good.
    let mut g = gather(OnShortfall::Redispatch, 6, 4);
    suspect(&mut g, &[0, 1, 2]);
    let mut refused = 0;
    loop {
        match actions(&mut g)[..] {
            [Action::Redispatch(subtask)] => g.handle(SECOND, Event::Failed { subtask }),
            [] => break,
            ref other => panic!("{other:?}"),
        }
        refused += 1;
    }
    assert_eq!(refused, 3 * (Policy::MAX_ATTEMPTS - 1));
    assert!(!g.over);
    for subtask in [0, 1] {
        g.handle(2 * SECOND, Event::Failed { subtask: SubtaskId(subtask) });
        assert_eq!(actions(&mut g), []);
    }
    g.handle(2 * SECOND, Event::Failed { subtask: SubtaskId(2) });
    assert_eq!(actions(&mut g), [Action::Local]);

    // Where nothing may be redispatched, a suspicion ends nothing either.
    let mut g = gather(OnShortfall::Fail, 6, 4);
    suspect(&mut g, &[0, 1, 2, 3]);
    assert_eq!(actions(&mut g), []);
    for subtask in [0, 2, 4, 5] {
        deliver(&mut g, subtask);
    }
    assert_eq!(actions(&mut g), [Action::Decode]);
}
