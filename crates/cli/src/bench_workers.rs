//! The workers of a comparison in the words of its report.
//!
//! Invariant: what workers share, and numbers cannot show, is among the notes.

use fcdcc::worker::{LOCAL_HOST, WorkerInfo, WorkerKind};
use fcdcc_bench::machine;

/// The workers as text: `6 x cpu (1 thread)`.
pub(crate) fn crew(infos: &[WorkerInfo]) -> String {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for info in infos {
        let what = format!("{} ({})", info.kind.name(), info.device);
        match groups.last_mut().filter(|(last, _)| *last == what) {
            Some((_, count)) => *count += 1,
            None => groups.push((what, 1)),
        }
    }
    let groups: Vec<String> = groups.into_iter().map(|(what, count)| format!("{count} x {what}")).collect();
    groups.join(", ")
}

/// Notes on what the workers share, which the numbers cannot show.
pub(crate) fn notes(infos: &[WorkerInfo]) -> Vec<String> {
    let mut notes = Vec::new();
    let threads = infos.iter().filter(|i| i.kind == WorkerKind::Cpu && i.host == LOCAL_HOST).count();
    if threads > machine::cores() {
        notes.push(format!(
            "The {threads} CPU workers are threads of one machine with {} cores: they compute one after the other in \
             part, so that the additional work of coding and of copies costs time that machines of their own would not \
             take, and hedging is held back while the cores are busy. Delays are waited for, not computed.",
            machine::cores()
        ));
    }
    let mut adapters: Vec<&String> = infos.iter().filter_map(|i| i.adapter.as_ref()).collect();
    let queues = adapters.len();
    adapters.sort_unstable();
    adapters.dedup();
    if queues > adapters.len() {
        notes.push(format!(
            "The {queues} GPU workers are queues of {} adapters and share their arithmetic: additional work costs time \
             that devices of their own would not take.",
            adapters.len()
        ));
    }
    notes
}
