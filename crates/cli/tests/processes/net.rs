//! Machines for tests: network namespaces on a bridge, and the processes in them.
//!
//! An [unplugged](Net::unplug) machine vanishes silently: both ends of its cable stay up, but the bridge drops its packets.
//! Names contain the process id. Namespaces are deleted on drop; those of a killed test are deleted when the next test
//! begins.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Pause between two checks of an awaited condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A namespace for each machine and one for the bridge.
pub(crate) struct Net {
    prefix: String,
    machines: Vec<&'static str>,
}

impl Net {
    /// Machines of these names (at most a dozen letters each).
    pub(crate) fn new(machines: &[&'static str]) -> Result<Self, String> {
        static NETS: AtomicUsize = AtomicUsize::new(0);
        remove_leftovers();
        let prefix = format!("fcdcc-{}-{}", std::process::id(), NETS.fetch_add(1, Ordering::Relaxed));
        let net = Self { prefix, machines: machines.to_vec() };
        let hub = net.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add name switch type bridge"))?;
        ip(&format!("-n {hub} link set switch up"))?;
        for machine in machines {
            let own = net.namespace(machine);
            ip(&format!("netns add {own}"))?;
            ip(&format!("-n {hub} link add name {machine} type veth peer name cable netns {own}"))?;
            ip(&format!("-n {hub} link set dev {machine} master switch up"))?;
            ip(&format!("-n {own} address add {}/24 dev cable", net.address(machine)))?;
            ip(&format!("-n {own} link set cable up"))?;
            ip(&format!("-n {own} link set lo up"))?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// A machine's address, valid only within the namespaces.
    pub(crate) fn address(&self, machine: &str) -> String {
        let index = self.machines.iter().position(|name| *name == machine).unwrap();
        format!("10.77.0.{}", index + 1)
    }

    /// A command that runs on a machine.
    pub(crate) fn command(&self, machine: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).arg(program.as_ref());
        command
    }

    /// Drops all packets to and from the machine from now on.
    pub(crate) fn unplug(&self, machine: &str) {
        ip(&format!("-n {} link set dev {machine} nomaster", self.hub())).unwrap();
    }

    pub(crate) fn plug(&self, machine: &str) {
        ip(&format!("-n {} link set dev {machine} master switch", self.hub())).unwrap();
    }

    /// Limits the traffic of a machine in both directions to `rate`, such as 1mbit.
    pub(crate) fn limit(&self, machine: &str, rate: &str) -> Result<(), String> {
        for (namespace, device) in [(self.hub(), machine), (self.namespace(machine), "cable")] {
            let tbf =
                format!("-n {namespace} qdisc add dev {device} root tbf rate {rate} burst 16kb latency 1s");
            said("tc", &tbf)?;
        }
        Ok(())
    }

    /// How often packets to a machine had to wait for its limit.
    pub(crate) fn held_back(&self, machine: &str) -> u64 {
        let text = said("tc", &format!("-s -n {} qdisc show dev {machine}", self.hub())).unwrap();
        let count = text.split("overlimits ").nth(1).and_then(|rest| rest.split(' ').next());
        count.unwrap().parse().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in self.machines.iter().chain(&["hub"]) {
            // After a failed creation some do not exist.
            let _ = ip(&format!("netns delete {}", self.namespace(machine)));
        }
    }
}

/// Deletes the namespaces of tests that were killed.
fn remove_leftovers() {
    for line in ip("netns list").unwrap_or_default().lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let pid = name.strip_prefix("fcdcc-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test may delete it first.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(args: &str) -> Result<String, String> {
    said("ip", args)
}

/// The output of a command, which must succeed.
fn said(program: &str, args: &str) -> Result<String, String> {
    let out = Command::new(program).args(args.split_whitespace()).output();
    let out = out.map_err(|e| format!("no command {program}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&out.stderr).replace('\n', " ");
    Err(format!("{program} {args}: {}", error.trim()))
}

/// A process that is killed on drop. `ip netns exec` replaces itself, so the child is the process itself.
pub(crate) struct Process {
    child: Child,
    /// Its output on both streams.
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Self {
        let out = File::create(&log).unwrap();
        let error = out.try_clone().unwrap();
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(error).spawn().unwrap();
        Self { child, log }
    }

    /// Kills it, as a power failure would, without any goodbye to its peers.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        until("its end", limit, || self.child.try_wait().unwrap())
            .map_err(|e| format!("{e}: {}", self.said()))
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Repeats `look` until it finds something; returns that.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("waited {limit:?} for {what}"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
