//! The command as masters and workers of a cluster, in many processes, and as a server of a page.

#[cfg(all(feature = "serve", unix))]
mod browser;
mod links;
mod models;
mod net;
mod netns;
#[cfg(all(feature = "serve", unix))]
mod page;
mod relay;
mod site;
mod star;
mod tls;
mod workers;

use fcdcc_test_support::fleet::prepare_environment;
use fcdcc_test_support::suites::Suites;

fn main() {
    // SAFETY: this is the first call of the process.
    #[expect(
        unsafe_code,
        reason = "setting an environment variable is unsafe in Rust; nothing else runs yet"
    )]
    unsafe {
        prepare_environment();
    }
    if let Ok(addresses) = std::env::var(relay::VARIABLE) {
        return relay::serve(&addresses);
    }
    // One at a time: the tests measure times and memory.
    let suites = Suites::from_arguments().one_at_a_time();
    #[cfg(all(feature = "serve", unix))]
    let suites = suites.add("page", page::trials);
    suites
        .add("links", links::trials)
        .add("models", models::trials)
        .add("netns", netns::trials)
        .add("tls", tls::trials)
        .add("workers", workers::trials)
        .run();
}
