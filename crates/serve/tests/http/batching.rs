//! Requests of several clients that are computed together.

use crate::client::post;
use crate::site::{Site, body, check, images, scores, wait_for};

const INFER: &str = "/v2/models/digits/infer";
const RUNS: &str = "fcdcc_serve_compute_seconds_count{model=\"digits\"}";
const ITEMS: &str = "fcdcc_serve_run_items_sum{model=\"digits\"}";

/// Sends a request with each number of images at once; every answer is checked. Returns the number of runs.
fn together(site: &Site, counts: &[usize]) -> f64 {
    let before = (site.metric(RUNS), site.metric(ITEMS));
    std::thread::scope(|scope| {
        for (seed, count) in counts.iter().enumerate() {
            scope.spawn(move || {
                let images = images(*count, seed);
                let answer = post(site.address, INFER, &body(&images));
                assert_eq!(answer.status, 200, "{}", answer.text());
                check(&scores(&answer.json()), &images);
            });
        }
    });
    wait_for("the count of items", || site.metric(ITEMS) - before.1 == counts.iter().sum::<usize>() as f64);
    site.metric(RUNS) - before.0
}

#[test]
fn requests_share_runs_and_get_their_own_answers() {
    let site = Site::new("[batching]\nmax_size = 8\npreferred_sizes = [4]\nmax_delay = '10s'");
    // A preferred size is reached: no request waits for the delay of ten seconds.
    let started = std::time::Instant::now();
    assert_eq!(together(&site, &[1, 1, 1, 1]), 1.0);
    assert_eq!(together(&site, &[2, 1, 1]), 1.0);
    assert!(started.elapsed().as_secs() < 9, "it waited for {:?}", started.elapsed());
    let many = post(site.address, INFER, &body(&images(9, 1)));
    assert!(many.status == 400 && many.error().contains("9 items where at most 8"), "{}", many.text());
}

#[test]
fn a_batch_that_nobody_joins_runs_after_the_delay() {
    let site = Site::new("[batching]\nmax_size = 8\nmax_delay = '2s'");
    let started = std::time::Instant::now();
    assert_eq!(together(&site, &[1]), 1.0);
    assert!(started.elapsed().as_secs() >= 2, "it waited for {:?} only", started.elapsed());
    // Three items are filled up to eight for the run, and only three come back.
    assert_eq!(together(&site, &[1, 2]), 1.0);
}

#[test]
fn without_batching_every_request_is_a_run() {
    let site = Site::new("");
    assert_eq!(together(&site, &[1, 1, 1]), 3.0);
}
