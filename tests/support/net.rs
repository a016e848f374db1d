//! A lab of its own: hosts that are network namespaces on a switch, with rates, loss and pulled cables. Needs root.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::skip;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Hosts on one switch; nothing outside of them is reachable, and nothing of this machine's network is touched.
pub(crate) struct Net {
    id: String,
    hosts: usize,
}

impl Net {
    /// A network of so many hosts; `None` where none can be made.
    pub(crate) fn of(hosts: usize) -> Option<Self> {
        let id = format!("lr{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let net = Self { id, hosts };
        if !rustix::process::geteuid().is_root() || !quietly(&["netns", "add", &net.switch()]) {
            skip::skipped("network namespaces need root and iproute2");
            return None;
        }
        let switch = net.switch();
        ip(&["-n", &switch, "link", "add", "lab0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "lab0", "up"]);
        (0..hosts).for_each(|host| net.connect(host));
        Some(net)
    }

    fn connect(&self, host: usize) {
        let (switch, name, port) = (self.switch(), self.name(host), format!("p{host}"));
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &port, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["-n", &switch, "link", "set", &port, "master", "lab0", "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{}/24", self.address(host)), "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
    }

    /// The address of a host, by its number.
    pub(crate) fn address(&self, host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// `command` as it runs on a host.
    pub(crate) fn on(&self, host: usize, command: &Command) -> Command {
        let mut inside = Command::new("/usr/sbin/ip");
        inside.args(["netns", "exec", &self.name(host)]).arg(command.get_program()).args(command.get_args());
        inside.env_clear();
        for (name, value) in command.get_envs() {
            value.iter().for_each(|value| {
                inside.env(name, value);
            });
        }
        command.get_current_dir().into_iter().for_each(|dir| {
            inside.current_dir(dir);
        });
        inside
    }

    /// A program on a host.
    pub(crate) fn command(&self, host: usize, program: &str) -> Command {
        self.on(host, &Command::new(program))
    }

    /// The host sends at most at this rate, such as `20mbit`.
    pub(crate) fn slow_down(&self, host: usize, rate: &str) {
        let mut tc = self.command(host, "/usr/sbin/tc");
        tc.args(["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "200ms"]);
        must(&mut tc);
    }

    /// So many of a hundred packets that reach the host are lost; `false` where this machine has no nft.
    pub(crate) fn lose(&self, host: usize, percent: u32) -> bool {
        if !std::path::Path::new("/usr/sbin/nft").exists() {
            skip::skipped("nft is missing; install it with scripts/test-parts");
            return false;
        }
        let rules = format!(
            "add table inet l; add chain inet l in {{ type filter hook input priority 0; }}; \
             add rule inet l in numgen random mod 100 < {percent} drop"
        );
        must(self.command(host, "/usr/sbin/nft").arg(rules));
        true
    }

    /// Pulls the host's cable.
    pub(crate) fn unplug(&self, host: usize) {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), "down"]);
    }

    /// Puts it in again.
    pub(crate) fn plug(&self, host: usize) {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), "up"]);
    }

    /// Bytes that a host has sent, with everything that carries them.
    pub(crate) fn sent(&self, host: usize) -> u64 {
        let output =
            self.command(host, "/usr/bin/cat").arg("/sys/class/net/eth0/statistics/tx_bytes").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    /// What a server on a host answers to GET, head and content, as asked from the same host.
    pub(crate) fn get(&self, host: usize, port: u16, path: &str) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/{}/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
            self.address(host)
        );
        let output = self.command(host, "/bin/bash").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn switch(&self) -> String {
        format!("{}s", self.id)
    }

    fn name(&self, host: usize) -> String {
        format!("{}h{host}", self.id)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        (0..self.hosts).for_each(|host| {
            quietly(&["netns", "del", &self.name(host)]);
        });
        quietly(&["netns", "del", &self.switch()]);
    }
}

fn ip(arguments: &[&str]) {
    must(Command::new("/usr/sbin/ip").args(arguments));
}

fn quietly(arguments: &[&str]) -> bool {
    let ran = Command::new("/usr/sbin/ip").args(arguments).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
