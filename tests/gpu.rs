//! GPU kernels and workers, and pools that contain them. Without an adapter the tests that need one are shown as ignored.

#[cfg(feature = "gpu")]
#[path = "gpu/backends.rs"]
mod backends;
#[path = "gpu/chaos.rs"]
mod chaos;
#[cfg(feature = "gpu")]
#[path = "gpu/kernels.rs"]
mod kernels;
#[cfg(feature = "gpu")]
#[path = "gpu/support.rs"]
mod support;
#[cfg(feature = "gpu")]
#[path = "gpu/tuning.rs"]
mod tuning;
#[cfg(feature = "gpu")]
#[path = "gpu/two_adapters.rs"]
mod two_adapters;
#[cfg(feature = "gpu")]
#[path = "gpu/worker.rs"]
mod worker;

use fcdcc_test_support::suites::Suites;

fn main() {
    // One at a time: a software adapter uses every core, and the soak test counts threads.
    let suites = Suites::from_arguments().one_at_a_time().add("chaos", chaos::trials);
    #[cfg(feature = "gpu")]
    let suites = suites
        .add("backends", backends::trials)
        .add("kernels", kernels::trials)
        .add("tuning", tuning::trials)
        .add("two_adapters", two_adapters::trials)
        .add("worker", worker::trials);
    suites.run();
}
