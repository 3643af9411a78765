//! Audits: right results are accepted, liars are found, and what cannot be told apart is refused.

use super::*;
use fcdcc_test_support::every_row;

/// Six workers; the `faulty` ones are wrong while `lying`. The others answer only after the first of these.
fn with_liars(faulty: &'static [usize], lying: &Arc<AtomicBool>, backoff: Duration) -> Pool {
    let (lying, answered) = (Arc::clone(lying), Arc::new(AtomicBool::new(faulty.is_empty())));
    let workers = scripted(6, move |i, worker, call| {
        if !faulty.contains(&i) {
            after(&call, || answered.load(Ordering::SeqCst))?;
            return call.answer(worker);
        }
        let lies = lying.load(Ordering::SeqCst);
        let result = call.answer_with(worker, |values| if lies { scaled(values) } else { values });
        answered.store(true, Ordering::SeqCst);
        result
    });
    let health = HealthOptions { backoff, max_backoff: backoff, ..HealthOptions::default() };
    Pool::with_options(workers, PoolOptions { health, ..PoolOptions::default() }).unwrap()
}

#[test]
fn audits_accept_what_is_right() {
    let layer = small();
    every_row([Audit::Detect, Audit::Correct], |audit| {
        let pool = pool(6, &[]);
        let prepared = layer.prepare(&pool, fail(4, 4).audit(audit)).unwrap();
        for _ in 0..20 {
            let report = exact(&layer, &prepared).report;
            assert_eq!((report.completion, report.flagged.len()), (Completion::Exact, 0));
            assert!(report.used.len() >= 5 && report.audit_floor.is_some_and(|floor| floor <= 1e-3));
        }
    });
    let off = fail(4, 4).audit(Audit::Off);
    let report = exact(&layer, &layer.prepare(&pool(6, &[]), off).unwrap()).report;
    assert_eq!((report.audit_floor, report.audited), (None, false));
}

#[test]
fn a_liar_is_found_left_out_and_quarantined_until_it_mends_its_ways() {
    let layer = small();
    let lying = Arc::new(AtomicBool::new(true));
    // Without an audit the wrong result reaches the output, so the comparison below can fail.
    let pool = with_liars(&[2], &lying, LIMIT);
    let unaudited = fail(4, 4).audit(Audit::Off).partial(false);
    let prepared = layer.prepare(&pool, unaudited).unwrap();
    let run = prepared.run(layer.input.view()).unwrap();
    assert!(run.report.used.contains(&SubtaskId(2)) && layer.error(&run.output) > 1e-3);

    let pool = with_liars(&[2], &lying, LIMIT);
    let prepared = layer.prepare(&pool, fail(4, 4).audit(Audit::Detect)).unwrap();
    let attempted = prepared.try_run(layer.input.view()).unwrap();
    let error = attempted.output.unwrap_err();
    assert!(matches!(error, Error::Corrupted { threshold: 5, .. }), "{error}");
    assert_eq!((error.kind(), attempted.report.completion), (ErrorKind::Refused, Completion::Refused));

    let pool = with_liars(&[2], &lying, LIMIT);
    let prepared = layer.prepare(&pool, fail(4, 4).audit(Audit::Correct)).unwrap();
    let run = exact(&layer, &prepared);
    assert_eq!((run.report.flagged.as_slice(), outcome(&run, 2)), (&[SubtaskId(2)][..], Outcome::Corrupt));
    assert_eq!(run.report.used, [0, 1, 3, 4, 5].map(SubtaskId));
    let health = pool.health(WorkerId(2)).unwrap();
    assert_eq!(health.state, State::Quarantined);
    assert!(health.cause.as_deref().is_some_and(|cause| cause.contains("contradicts")), "{health:?}");
    // In quarantine it gets no tasks, and the others suffice.
    let run = exact(&layer, &prepared);
    assert_eq!((run.report.flagged.len(), outcome(&run, 2)), (0, Outcome::Failed));

    let pool = with_liars(&[2], &lying, Duration::from_millis(2));
    let prepared = layer.prepare(&pool, fail(4, 4).audit(Audit::Correct)).unwrap();
    assert_eq!(exact(&layer, &prepared).report.flagged, [SubtaskId(2)]);
    lying.store(false, Ordering::SeqCst);
    let mut on_probation = false;
    until("it is trusted again", || {
        let run = exact(&layer, &prepared);
        assert_eq!(run.report.flagged.len(), 0);
        on_probation |= state(&pool, 2) == State::Probation;
        // On a busy machine it may also be slow.
        matches!(state(&pool, 2), State::Healthy | State::Straggling)
    });
    assert!(on_probation);
    until("it is used again", || outcome(&exact(&layer, &prepared), 2) == Outcome::Used);
}

#[test]
fn more_liars_than_the_spares_can_tell_are_refused() {
    let layer = small();
    let pool = with_liars(&[1, 4], &Arc::new(AtomicBool::new(true)), LIMIT);
    every_row([fail(4, 4), options(4, 4)], |options| {
        let prepared = layer.prepare(&pool, options.audit(Audit::Correct)).unwrap();
        let error = prepared.run(layer.input.view()).unwrap_err();
        assert!(matches!(error, Error::Corrupted { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Refused);
    });
    // The faulty worker is unknown, so none is quarantined.
    assert!((0..6).all(|worker| state(&pool, worker) != State::Quarantined));
}

#[test]
fn audits_without_spares_are_refused_before_anything_runs() {
    let layer = small();
    let refused = |n, audit| {
        let error =
            layer.prepare(&pool(n, &[]), fail(4, 4).audit(audit)).err().map(|e| (e.kind(), e.to_string()));
        error.unwrap_or_else(|| panic!("{audit} with {n} workers"))
    };
    let rows = [(4, Audit::Detect, 0, 1), (4, Audit::Correct, 0, 2), (5, Audit::Correct, 1, 2)];
    every_row(rows, |(n, audit, spares, least)| {
        let (kind, text) = refused(n, audit);
        assert_eq!(kind, ErrorKind::BadInput);
        assert!(text.contains(&format!("is {spares} where at least {least}")), "{text}");
    });
    assert!(layer.prepare(&pool(5, &[]), fail(4, 4).audit(Audit::Detect)).is_ok());
}

#[test]
fn sums_that_cancel_raise_no_alarm() {
    // Twelve rows make four full parts: zero padding at the end of a part would not cancel.
    let mut layer = Layer::<f32>::without_truth(&[1, 24, 14, 10], &[8, 24, 3, 3], ConvParams::default());
    assert!(layer.shape().reduction() >= 200);
    // Filters with zero sums cancel constants.
    for mut filter in layer.weight.outer_iter_mut() {
        let mean = filter.iter().sum::<f32>() / filter.len() as f32;
        filter.iter_mut().for_each(|tap| *tap -= mean);
    }
    let wide = |values: &ArrayD<f32>| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    layer.bias.fill(0.0);
    let usual = error_bound(1.0, f32::EPSILON.into(), layer.shape().reduction());
    for audit in [Audit::Detect, Audit::Correct] {
        let pool = pool(6, &[]);
        let prepared = layer.prepare(&pool, fail(4, 4).audit(audit)).unwrap();
        for round in 0..50 {
            let noise = fcdcc_test_support::normal::<f32>(layer.input.len(), round);
            for (value, noise) in layer.input.iter_mut().zip(noise) {
                *value = 100.0 + 0.01 * noise;
            }
            let run = prepared.run(layer.input.view());
            let run = run.unwrap_or_else(|error| panic!("{audit}, round {round}: {error}"));
            assert_eq!(run.report.flagged.len(), 0, "{audit}, round {round}");
            // The remainders are far less accurate than ordinary sums; this must not raise an alarm.
            let truth = reference(&layer.shape(), &wide(&layer.input), &wide(&layer.weight), None).unwrap();
            let error = relative_l2(run.output.as_slice().unwrap(), &truth);
            assert!((10.0 * usual..0.1).contains(&error), "{error:e} where {usual:e} is usual");
        }
    }
}
