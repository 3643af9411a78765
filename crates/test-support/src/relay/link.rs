//! The description of a link, and what it does to each packet.
//!
//! Invariant: the fate of a packet depends on the seed, the direction and the packet's number alone, never on the clock.

use std::time::Duration;

/// The way of a packet through a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connects to the side that listens.
    ToTarget,
    /// The way back.
    ToClient,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::ToTarget, Self::ToClient];
}

/// What a link does to the packets of one direction. A packet is a datagram, or the bytes that one read of a stream returns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Path {
    /// Probability that a packet is lost. A lost piece of a stream, and all behind it, comes later by the time of a
    /// retransmission.
    pub loss: f64,
    /// Probability that a datagram comes twice.
    pub duplication: f64,
    /// The least time on the way.
    pub delay: Duration,
    /// The largest further time, drawn for each packet. Datagrams overtake one another; the pieces of a stream do not.
    pub jitter: Duration,
    /// Bytes a second; unlimited when `None`.
    pub rate: Option<u32>,
}

/// A link: its seed, and what it does in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub seed: u64,
    pub to_target: Path,
    pub to_client: Path,
}

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fate {
    pub lost: bool,
    /// Time on the way.
    pub delay: Duration,
    /// Time on the way of a second copy.
    pub copy: Option<Duration>,
    /// Where a piece of a stream is divided, as a fraction of its length.
    pub split: f64,
}

/// The decisions about one packet, each of which is drawn by itself.
#[derive(Clone, Copy)]
enum Draw {
    Loss,
    Duplication,
    Delay,
    CopyDelay,
    Split,
}

impl Link {
    /// A link that does the same in both directions.
    pub fn both_ways(seed: u64, path: Path) -> Self {
        Self { seed, to_target: path, to_client: path }
    }

    pub fn path(&self, direction: Direction) -> &Path {
        match direction {
            Direction::ToTarget => &self.to_target,
            Direction::ToClient => &self.to_client,
        }
    }

    /// What happens to the packet with this number.
    pub fn fate(&self, direction: Direction, number: u64) -> Fate {
        let path = self.path(direction);
        let draw = |what: Draw| uniform(self.seed, direction, number, what);
        let delay = |what| path.delay + path.jitter.mul_f64(draw(what));
        Fate {
            lost: draw(Draw::Loss) < path.loss,
            delay: delay(Draw::Delay),
            copy: (draw(Draw::Duplication) < path.duplication).then(|| delay(Draw::CopyDelay)),
            split: draw(Draw::Split),
        }
    }
}

/// A number from 0 to 1 that depends on nothing but its arguments.
fn uniform(seed: u64, direction: Direction, number: u64, what: Draw) -> f64 {
    let way = match direction {
        Direction::ToTarget => 0,
        Direction::ToClient => 1,
    };
    let own = mixed(seed ^ mixed(number ^ mixed(way << 8 | what as u64)));
    (own >> 11) as f64 / (1u64 << 53) as f64
}

/// The finaliser of splitmix64, by which neighbouring numbers give independent ones.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
