//! Rates of the links to other machines, and of what these links share.
//!
//! Relevant if you want to know how long transfers are predicted to take. The machines of a cluster form a star: slabs and
//! results of all of them pass the link of this machine. What one machine's link carries alone is part of
//! [`WorkerRates`]; what all of them carry together is a [`Network`].

use serde::{Deserialize, Serialize};

use super::work::{Work, WorkerRates};
use crate::coding::Code;

/// Rates of the link to one machine, alone in use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkRates {
    /// Seconds for a subtask: its messages there and back.
    pub call_s: f64,
    /// Seconds for an element of a slab.
    pub upload_s: f64,
    /// Seconds for an element of a sub-result.
    pub download_s: f64,
}

/// The links to other machines when all of them are in use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Number of machines. The devices of a machine share slabs that are the same.
    pub machines: usize,
    /// Number of workers on them.
    pub workers: usize,
    /// Seconds for an element of slabs, while all machines receive: for all elements, whichever machine they go to.
    pub send_s: f64,
    /// Seconds for an element of sub-results, while all machines send.
    pub receive_s: f64,
}

impl WorkerRates {
    /// The rates of such a worker behind another link.
    #[must_use]
    pub fn over(self, link: LinkRates) -> Self {
        let LinkRates { call_s, upload_s, download_s } = link;
        Self { call_s, upload_s, download_s, ..self }
    }
}

impl Network {
    /// Seconds for sending the slabs of a layer and for receiving the sub-results that decode it. `worker`: the rates of a
    /// worker, alone in use; `work`: that of a subtask.
    pub(super) fn seconds(&self, worker: &WorkerRates, work: &Work, code: &Code) -> f64 {
        let machines = self.machines.max(1);
        // Subtasks for which there are no workers on other machines are those of workers here.
        let sent = code.n().min(self.workers);
        let received = code.recovery_threshold().min(self.workers);
        let busiest = |subtasks: usize| subtasks.div_ceil(machines) as f64;
        let (up_all, up_one) =
            if code.shares_slabs() { (machines.min(sent) as f64, 1.0) } else { (sent as f64, busiest(sent)) };
        let up = work.upload * (up_all * self.send_s).max(up_one * worker.upload_s);
        let down =
            work.download * (received as f64 * self.receive_s).max(busiest(received) * worker.download_s);
        up + down
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::{Rates, choose_partitions, subtask_shape};
    use super::*;
    use crate::coding::CodeKind;
    use crate::conv::{ConvParams, ConvShape};

    /// Four machines with two workers each, every link with this many seconds an element; `shared`: also that of this
    /// machine, which all transfers pass.
    fn star(elem_s: f64, shared: bool) -> Rates {
        let rates = Rates::default();
        let all = if shared { elem_s } else { elem_s / 4.0 };
        Rates {
            worker: WorkerRates { upload_s: elem_s, download_s: elem_s, ..rates.worker },
            network: Some(Network { machines: 4, workers: 8, send_s: all, receive_s: all }),
            ..rates
        }
    }

    fn layer() -> ConvShape {
        ConvShape::new(&[1, 64, 56, 56], &[64, 64, 3, 3], &ConvParams::default().padding([1])).unwrap()
    }

    fn wait(rates: &Rates, k_a: usize, k_b: usize) -> f64 {
        let code = Code::new(CodeKind::Crme, k_a, k_b, 8).unwrap();
        rates.predict::<f32>(&layer(), &code).unwrap().wait_s
    }

    #[test]
    fn transfers_add_up_on_the_link_that_they_share() {
        // So slow that nothing else counts.
        let (slow, elems) = (1e-6, |k_a, k_b| {
            let code = Code::new(CodeKind::Crme, k_a, k_b, 8).unwrap();
            let work = Work::of(&subtask_shape(&layer(), &code).unwrap());
            (work.upload, work.download)
        });
        // Eight different slabs, of which the link of this machine sends each; six results.
        let (up, down) = elems(4, 6);
        let want = slow * (8.0 * up + 6.0 * down);
        assert!((wait(&star(slow, true), 4, 6) / want - 1.0).abs() < 0.02);
        // Links of their own: two subtasks a machine.
        let want = slow * (2.0 * up + 2.0 * down);
        assert!((wait(&star(slow, false), 4, 6) / want - 1.0).abs() < 0.05);
        // With k_A = 1 all subtasks have the same slab, which is sent once to each of four machines.
        let (up, down) = elems(1, 12);
        let want = slow * (4.0 * up + 6.0 * down);
        assert!((wait(&star(slow, true), 1, 12) / want - 1.0).abs() < 0.02);
        // Negative control: without a network no transfer waits for another.
        let alone = Rates { network: None, ..star(slow, true) };
        assert!((wait(&alone, 1, 12) / (slow * (up + down)) - 1.0).abs() < 0.1);
    }

    #[test]
    fn slow_links_choose_the_pair_with_the_fewest_bytes() {
        let bytes = |(k_a, k_b): (usize, usize)| {
            let code = Code::new(CodeKind::Crme, k_a, k_b, 8).unwrap();
            let work = Work::of(&subtask_shape(&layer(), &code).unwrap());
            let copies = if code.shares_slabs() { 4.0 } else { 8.0 };
            copies * work.upload + 6.0 * work.download
        };
        let chosen = choose_partitions::<f32>(&layer(), CodeKind::Crme, 8, 2, &star(1e-6, true)).unwrap().0;
        let all = super::super::feasible_partitions(&layer(), CodeKind::Crme, 8, 2).unwrap();
        assert!(all.len() > 2, "{all:?}");
        assert!(all.iter().all(|pair| bytes(chosen) <= bytes(*pair)), "{chosen:?} of {all:?}");
        assert!(all.iter().any(|pair| bytes(*pair) > 1.5 * bytes(chosen)), "{chosen:?} of {all:?}");
    }

    #[test]
    fn more_workers_on_a_slow_link_are_not_faster_and_a_faster_link_is() {
        let at = |elem_s| wait(&star(elem_s, true), 4, 6);
        assert!(at(1e-6) > 5.0 * at(1e-7) && at(1e-7) > at(1e-8));
        let few = Rates {
            network: Some(Network { workers: 2, ..star(1e-6, true).network.unwrap() }),
            ..star(1e-6, true)
        };
        // Six of eight workers are here.
        assert!(wait(&few, 4, 6) < 0.5 * at(1e-6));
    }
}
