//! GPU kernels and workers, and pools that contain them. Without an adapter the tests that need one are shown as ignored.

#[cfg(feature = "gpu")]
mod backends;
mod chaos;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod support;
#[cfg(feature = "gpu")]
mod tuning;
#[cfg(feature = "gpu")]
mod two_adapters;
#[cfg(feature = "gpu")]
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
