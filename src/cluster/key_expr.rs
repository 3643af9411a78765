//! The key expressions under which machines and masters find each other.
//!
//! ```text
//! fcdcc/<cluster>/w/<machine>/<boot>/alive   liveliness token of a worker process
//! fcdcc/<cluster>/w/<machine>/<boot>/info    description of the process, for masters and viewers
//! fcdcc/<cluster>/w/<machine>/<boot>/call    filters, slabs, tasks, results, for masters
//! fcdcc/<cluster>/w/<machine>/<boot>/ctl     cancellations and releases
//! fcdcc/<cluster>/m/<master>                 liveliness token of a master
//! fcdcc/<cluster>/hello/machine              whether a machine that connects is taken, for all
//! fcdcc/<cluster>/hello/master               whether a master that connects is taken, for all
//! ```
//!
//! The boot number distinguishes a restarted worker from its predecessor: no message for the old process reaches the new
//! one.

use super::wire::MasterId;

/// All keys of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    root: String,
}

/// The keys of one worker process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WorkerKeys {
    base: String,
}

impl Keys {
    pub(super) fn new(cluster: &str) -> Self {
        Self { root: format!("fcdcc/{cluster}") }
    }

    pub(super) fn worker(&self, machine: &str, boot: u64) -> WorkerKeys {
        WorkerKeys { base: format!("{}/w/{machine}/{boot:016x}", self.root) }
    }

    /// Matches the tokens of all worker processes.
    pub(super) fn all_alive(&self) -> String {
        format!("{}/w/*/*/alive", self.root)
    }

    /// Matches the descriptions of all worker processes.
    pub(super) fn all_info(&self) -> String {
        format!("{}/w/*/*/info", self.root)
    }

    /// Matches all keys of one machine, with any boot number.
    pub(super) fn machine(&self, machine: &str) -> String {
        format!("{}/w/{machine}/**", self.root)
    }

    pub(super) fn master(&self, master: MasterId) -> String {
        format!("{}/m/{master}", self.root)
    }

    /// Where machines ask the master that they connect to.
    pub(super) fn machine_hello(&self) -> String {
        format!("{}/hello/machine", self.root)
    }

    /// Where masters ask the machine that they connect to.
    pub(super) fn master_hello(&self) -> String {
        format!("{}/hello/master", self.root)
    }

    pub(super) fn all_masters(&self) -> String {
        format!("{}/m/*", self.root)
    }

    /// Machine and boot number in the key of a worker.
    pub(super) fn parse_worker(&self, key: &str) -> Option<(String, u64)> {
        let mut parts = key.strip_prefix(&self.root)?.strip_prefix("/w/")?.split('/');
        let (machine, boot) = (parts.next()?, parts.next()?);
        Some((machine.to_owned(), u64::from_str_radix(boot, 16).ok()?))
    }

    /// The master in the key of a master's token.
    pub(super) fn parse_master(&self, key: &str) -> Option<MasterId> {
        let id = key.strip_prefix(&self.root)?.strip_prefix("/m/")?;
        u128::from_str_radix(id, 16).ok().map(MasterId)
    }
}

impl WorkerKeys {
    pub(super) fn alive(&self) -> String {
        format!("{}/alive", self.base)
    }

    pub(super) fn info(&self) -> String {
        format!("{}/info", self.base)
    }

    pub(super) fn call(&self) -> String {
        format!("{}/call", self.base)
    }

    pub(super) fn ctl(&self) -> String {
        format!("{}/ctl", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_machine_boot_and_master() {
        let keys = Keys::new("lab");
        let worker = keys.worker("alpha", 0xab);
        assert_eq!(worker.call(), "fcdcc/lab/w/alpha/00000000000000ab/call");
        assert_eq!(keys.parse_worker(&worker.alive()), Some(("alpha".to_owned(), 0xab)));
        assert_eq!(keys.parse_master(&keys.master(MasterId(5))), Some(MasterId(5)));
        for foreign in ["fcdcc/other/w/alpha/ab/alive", "fcdcc/lab/w/alpha", "fcdcc/lab/w/a/zz/alive", "x"] {
            assert_eq!(keys.parse_worker(foreign), None, "{foreign}");
            assert_eq!(keys.parse_master(foreign), None, "{foreign}");
        }
    }
}
