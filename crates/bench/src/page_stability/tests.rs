use super::*;
use crate::format::malformed;
use crate::stability_findings::tests::point;
use crate::stability_record::tests::setting;

fn report(points: &[(&str, usize, f64)]) -> StabilityReport {
    let points = points.iter().map(|(code, n, worst)| point(code, *n, *worst)).collect();
    StabilityReport {
        schema: 1,
        setting: setting(),
        tables: Vec::new(),
        sweep: vec![Sweep { label: "n - delta = n/5".to_owned(), points }],
        responders: Vec::new(),
        hosts: Vec::new(),
        errors: Vec::new(),
        left_out: Vec::new(),
        findings: vec!["A finding with delta.".to_owned()],
    }
}

#[test]
fn the_answer_ranks_codes_by_how_far_they_reach() {
    let far = [("vandermonde", 5, f64::INFINITY), ("vandermonde", 9, f64::INFINITY)];
    let near = [("chebyshev", 5, 2.0), ("chebyshev", 9, 1e9), ("crme", 5, 2.0), ("crme", 9, 3.0)];
    let page = page(&report(&[far, [near[0], near[1]], [near[2], near[3]]].concat()));
    assert_eq!(
        page.answer.replace('\u{a0}', " "),
        "With the worst responders, f32 keeps three digits at every n up to 9 with crme, up to n = 5 with chebyshev and \
         nowhere with vandermonde (n − δ = n/5)."
    );
    assert_eq!(page.picture.len(), 1);
    // Of a sample only the worst seen is known.
    let mut sampled = report(&near);
    sampled.sweep[0].points[0].exhaustive = false;
    assert!(super::page(&sampled).answer.starts_with("With the worst responders seen, "));
    let html = page.html();
    assert!(malformed(&html).is_none() && html.contains("limit of f32"), "{:?}", malformed(&html));
}

#[test]
fn without_a_sweep_the_first_finding_is_the_answer() {
    let page = page(&StabilityReport { sweep: Vec::new(), ..report(&[]) });
    assert_eq!((&*page.answer, page.picture.len(), &*page.caption), ("A finding with δ.", 0, ""));
    assert_eq!(malformed(&page.html()), None);
}
