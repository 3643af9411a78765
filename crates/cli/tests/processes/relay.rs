//! A relay process that simulates a long and lossy link, for tests in which the relay is a machine of its own: it delays
//! data, sometimes holds the stream back as TCP does during a retransmission, and breaks its connections on command.
//!
//! It ends when its standard input ends, at the latest with the test.

use std::io::BufRead;
use std::time::Duration;

use fcdcc_test_support::relay::{Carries, Link, Path, Relay};

/// Set to two addresses `LISTEN TARGET`, it turns a test binary into a relay.
pub(crate) const VARIABLE: &str = "FCDCC_TEST_RELAY";
/// The line that breaks all connections.
pub(crate) const CUT: &str = "cut";

/// One-way delay.
const DELAY: Duration = Duration::from_millis(25);
/// Fraction of the pieces that are lost.
const LOSS: f64 = 0.01;

/// Relays between `LISTEN` and `TARGET` until standard input ends.
pub(crate) fn serve(addresses: &str) {
    let (listen, target) = addresses.split_once(' ').expect("two addresses");
    let address = |text: &str| text.parse().expect("an address");
    let link = Link::both_ways(1, Path { loss: LOSS, delay: DELAY, ..Path::default() });
    let relay = Relay::start_at(address(listen), Carries::Streams, address(target), link);
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if line == CUT {
            relay.break_connections();
        }
    }
}
