use std::cell::RefCell;
use std::rc::Rc;

use super::*;

/// Takes `calm_ms` plus the delay of the last worker it needs.
struct Fake {
    name: &'static str,
    calm_ms: f64,
    tolerated: usize,
    error: f64,
    seen: Rc<RefCell<Vec<(&'static str, Vec<TaskFault>)>>>,
}

impl MethodRunner for Fake {
    fn run(&mut self, fates: &[TaskFault], check: bool) -> Result<Trial> {
        self.seen.borrow_mut().push((self.name, fates.to_vec()));
        let mut late: Vec<f64> = fates.iter().map(|f| f.delay.as_secs_f64() * 1e3).collect();
        late.sort_by(|a, b| b.total_cmp(a));
        let error = check.then_some([self.error, 1e-6]);
        let latency_ms = self.calm_ms + late[self.tolerated];
        Ok(Trial { latency_ms, macs: 10.0, error, ..Trial::default() })
    }
}

type Seen = Rc<RefCell<Vec<(&'static str, Vec<TaskFault>)>>>;

fn contestants(seen: &Seen, error: f64) -> Contestants<'static> {
    let fake = |name, calm_ms, tolerated, error| {
        let plan = MethodPlan {
            method: String::from(name),
            about: String::new(),
            code: String::from("uncoded"),
            n: 6,
            recovery_threshold: 6 - tolerated,
            k_a: 6,
            k_b: 1,
            tolerated,
            work: 1.0,
            upload_bytes: 0.0,
            download_bytes: 0.0,
            filter_bytes: 0.0,
            predicted_ms: None,
        };
        let fake: Box<dyn MethodRunner> =
            Box::new(Fake { name, calm_ms, tolerated, error, seen: Rc::clone(seen) });
        (plan, fake)
    };
    vec![fake("plain", 10.0, 0, 0.0), fake("copies", 30.0, 2, 0.0), fake("coded", 15.0, 2, error)]
}

fn frame() -> Study {
    Study {
        name: "l".to_owned(),
        kind: "layer".to_owned(),
        shape: String::new(),
        macs: 0.0,
        workers: 6,
        tolerate: 2,
        plans: Vec::new(),
        scenarios: Vec::new(),
        break_even: Vec::new(),
    }
}

fn plan() -> Plan {
    Plan { workers: 6, tolerate: 2, trials: 12, seed: 3, scenarios: None, delay: None, break_even: true }
}

#[test]
fn all_methods_meet_the_same_fates_in_changing_order() {
    let seen = Seen::default();
    let found = study(&plan(), frame(), contestants(&seen, 0.0), &mut |_| {}).unwrap();
    let seen = seen.borrow();
    let turns: Vec<_> = seen.chunks(3).collect();
    for turn in &turns {
        assert!(turn.iter().all(|(_, fates)| *fates == turn[0].1));
        let mut names: Vec<_> = turn.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(names, ["coded", "copies", "plain"]);
    }
    let first = |name| turns.iter().filter(|turn| turn[0].0 == name).count();
    assert!(["plain", "copies", "coded"].iter().all(|name| first(*name) > turns.len() / 6));
    assert_eq!((found.scenarios.len(), found.plans.len(), found.macs), (8, 3, 10.0));
    // Uncoded runs of 10 ms with a straggler 50 ms late: five latencies.
    let late = &found.scenarios[2];
    assert_eq!((late.name.as_str(), late.delay_ms), ("2 of 6 workers 50 ms late", Some(50.0)));
    let medians: Vec<f64> = late.methods.iter().map(|m| m.median.value).collect();
    assert_eq!(medians, [60.0, 30.0, 15.0]);
    assert_eq!(late.methods[2].to_first.value, 0.25);
    assert_eq!(late.methods[0].latencies_ms.len(), 12);
    let again = study(&plan(), frame(), contestants(&Seen::default(), 0.0), &mut |_| {}).unwrap();
    assert_eq!(again, found);
}

#[test]
fn the_break_even_is_where_the_medians_cross() {
    let found = study(&plan(), frame(), contestants(&Seen::default(), 0.0), &mut |_| {}).unwrap();
    let pairs: Vec<_> =
        found.break_even.iter().map(|b| (b.against.as_str(), b.stragglers, b.delay_ms)).collect();
    // Coding takes 5 ms more than the uncoded run, 15 ms less than copies.
    assert_eq!(
        pairs,
        [
            ("plain", 1, Some(5.0)),
            ("copies", 1, Some(0.0)),
            ("plain", 2, Some(5.0)),
            ("copies", 2, Some(0.0)),
        ]
    );
    assert_eq!(found.break_even[0].points[0], [0.0, 15.0, 10.0]);
    let none = Plan { break_even: false, ..plan() };
    assert!(
        study(&none, frame(), contestants(&Seen::default(), 0.0), &mut |_| {}).unwrap().break_even.is_empty()
    );
}

#[test]
fn the_estimate_comes_first_and_the_steps_add_up() {
    let mut told = Vec::new();
    let mut last = (0, 0);
    study(&plan(), frame(), contestants(&Seen::default(), 0.0), &mut |progress| match progress {
        Progress::Begins { estimate, .. } => told.push(estimate),
        Progress::Step { done, total, .. } => last = (done, total),
    })
    .unwrap();
    assert!(told.len() == 1 && told[0] > Duration::from_secs(10), "{told:?}");
    assert_eq!(last.0, last.1);
}

#[test]
fn wrong_outputs_and_senseless_plans_are_refused() {
    for error in [2e-6, f64::NAN] {
        let refused = study(&plan(), frame(), contestants(&Seen::default(), error), &mut |_| {}).unwrap_err();
        assert_eq!(refused.kind(), fcdcc::error::ErrorKind::Refused);
        assert!(refused.to_string().contains("l by coded (nobody late)"), "{refused}");
    }
    let none = Plan { trials: 0, ..plan() };
    assert!(study(&none, frame(), contestants(&Seen::default(), 0.0), &mut |_| {}).is_err());
    assert!(study(&plan(), frame(), Vec::new(), &mut |_| {}).is_err());
    let strangers = Plan { scenarios: Some(vec!["7:crash".parse().unwrap()]), ..plan() };
    assert!(study(&strangers, frame(), contestants(&Seen::default(), 0.0), &mut |_| {}).is_err());
}
