//! Machines that hand models to each other over a real network: hosts in namespaces, slow links, lost packets, pulled cables.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use larder::digest::Sha256;

#[path = "support/net.rs"]
mod net;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod program;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use net::Net;
use program::Lab;
use sshd::Sshd;

/// Longer than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8014;
const MIB: usize = 1 << 20;

/// Content that differs everywhere, so that a wrong offset shows.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (seed ^ (seed >> 29)).to_le_bytes()
    };
    std::iter::repeat_with(next).take(len.div_ceil(8)).collect::<Vec<_>>().concat()[..len].to_vec()
}

/// The one artifact that every machine here wants: two large files, two small ones.
static CONTENTS: LazyLock<Vec<(&'static str, Vec<u8>, Sha256)>> = LazyLock::new(|| {
    let contents = [
        ("config.json", b"{\"model\": \"tiny\"}".to_vec()),
        ("a.bin", noise(1, 9 * MIB + 5)),
        ("b.bin", noise(2, 10 * MIB)),
        ("sub/c.bin", noise(3, MIB + 1)),
    ];
    contents.into_iter().map(|(path, bytes)| (path, Sha256::of(&bytes), bytes)).map(|(p, d, b)| (p, b, d)).collect()
});

fn one_copy() -> u64 {
    CONTENTS.iter().map(|(_, bytes, _)| bytes.len() as u64).sum()
}

fn manifest() -> String {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let head = format!("[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"hf:acme/tiny@{commit}\"\n");
    let file = |(path, bytes, digest): &(&str, Vec<u8>, Sha256)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{digest}\"\n", bytes.len())
    };
    format!("{head}{}", CONTENTS.iter().map(file).collect::<String>())
}

/// A machine whose upstream is host 0 and whose peers are these hosts.
fn machine(net: &Net, name: &str, order: &str, peers: &[usize]) -> Lab {
    let peers: Vec<String> = peers
        .iter()
        .map(|host| format!("{{ name = \"peer{host}\", url = \"http://{}:{PORT}\" }}", net.address(*host)))
        .collect();
    let inventory = format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"{name}\"\n[machines.{name}]\n\
         [stores]\nplain = {{ layout = \"folder\", path = \"~/plain\" }}\n\
         [sources]\norder = {order}\nhub = \"http://{}:{PORT}\"\npeers = [{}]\n\
         stall-timeout = \"2 s\"\nretries = 8\nretry-pause = \"200 ms\"\n",
        net.address(0),
        peers.join(", ")
    );
    Lab::new(&inventory, &manifest())
}

fn put(lab: &Lab, path: &str) {
    let bytes = &CONTENTS.iter().find(|(name, ..)| *name == path).unwrap().1;
    lab.write(&format!("home/plain/{path}"), bytes);
}

fn put_all(lab: &Lab) {
    CONTENTS.iter().for_each(|(path, ..)| put(lab, path));
}

fn assert_has_all(lab: &Lab, who: &str) {
    for (path, bytes, _) in CONTENTS.iter() {
        assert!(std::fs::read(lab.path(&format!("home/plain/{path}"))).unwrap() == *bytes, "{who}: {path}");
    }
}

/// A program whose words on standard error can be waited for; killed when dropped.
struct Running {
    child: Child,
    said: Receiver<String>,
    all: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { child, said, all: String::new() }
    }

    fn wait_for(&mut self, words: &str) {
        while let Ok(line) = self.said.recv_timeout(PATIENCE) {
            self.all.push_str(&format!("{line}\n"));
            if line.contains(words) {
                return;
            }
        }
        panic!("{words:?} was never said:\n{}", self.all);
    }

    /// Its exit code, and everything it said.
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(line) = self.said.recv_timeout(PATIENCE) {
            self.all.push_str(&format!("{line}\n"));
        }
        (self.child.wait().unwrap().code(), std::mem::take(&mut self.all))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(net: &Net, host: usize, lab: &Lab, more: &[&str]) -> Running {
    let address = format!("{}:{PORT}", net.address(host));
    let mut arguments = vec!["serve", "--address", address.as_str(), "--allow", "10.77.0.0/24"];
    arguments.extend(more);
    let mut serving = Running::start(net.on(host, &lab.command(&arguments)));
    serving.wait_for(" at http");
    serving
}

fn apply(net: &Net, host: usize, lab: &Lab) -> Running {
    Running::start(net.on(host, &lab.command(&["apply", "--yes", "--progress", "lines"])))
}

/// Bytes of content that the server on a host has handed out.
fn sent(net: &Net, host: usize) -> u64 {
    let metrics = net.get(host, PORT, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("larder_serve_sent_bytes_total "));
    line.unwrap_or_else(|| panic!("no metrics: {metrics}")).parse().unwrap()
}

fn wait_until_sent(net: &Net, host: usize, bytes: u64) {
    let begin = std::time::Instant::now();
    while sent(net, host) < bytes {
        assert!(begin.elapsed() < PATIENCE, "only {} of {bytes} bytes were sent", sent(net, host));
    }
}

#[test]
fn a_fresh_host_is_provisioned_from_one_peer() {
    let Some(net) = Net::of(2) else { return };
    let (peer, fresh) = (machine(&net, "peer0", "[\"peer\"]", &[]), machine(&net, "fresh", "[\"peer\"]", &[0]));
    put_all(&peer);
    let _serving = serve(&net, 0, &peer, &[]);
    let (code, said) = apply(&net, 1, &fresh).end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, "fresh");
    assert_eq!(sent(&net, 0), one_copy());
    let (code, said) = apply(&net, 1, &fresh).end();
    assert_eq!((code, sent(&net, 0)), (Some(0), one_copy()), "there is nothing left to do: {said}");
}

/// Host 0 is upstream, 1 and 2 are peers that each have a part, and eight others have nothing.
#[test]
fn eight_hosts_at_once_cost_upstream_one_copy() {
    let Some(net) = Net::of(11) else { return };
    let upstream = machine(&net, "upstream", "[\"peer\"]", &[]);
    put_all(&upstream);
    let _upstream = serve(&net, 0, &upstream, &[]);
    net.slow_down(0, "80mbit");
    let order = "[\"peer\", \"upstream\"]";
    let peers: Vec<Lab> = [1, 2].map(|host| machine(&net, &format!("peer{host}"), order, &[1, 2])).into();
    put(&peers[0], "a.bin");
    let _serving: Vec<Running> =
        [1, 2].map(|host| serve(&net, host, &peers[host - 1], &["--fetch-missing"])).into_iter().collect();
    let fresh: Vec<Lab> = (3..11).map(|host| machine(&net, &format!("fresh{host}"), order, &[1, 2])).collect();
    let running: Vec<Running> = (3..).zip(&fresh).map(|(host, lab)| apply(&net, host, lab)).collect();
    for (lab, running) in fresh.iter().zip(running) {
        let (code, said) = running.end();
        assert_eq!(code, Some(0), "{said}");
        assert_has_all(lab, &said);
    }
    let missing = one_copy() - CONTENTS[1].1.len() as u64;
    let from_upstream = sent(&net, 0);
    assert!(from_upstream >= missing && from_upstream * 100 <= missing * 102, "{from_upstream} of {missing} bytes");
    let from_peers = sent(&net, 1) + sent(&net, 2);
    assert!(from_peers >= 8 * one_copy() && from_peers * 100 <= 8 * one_copy() * 102, "{from_peers}");
    // What they brought, they have.
    let brought =
        |lab: &Lab| CONTENTS.iter().filter(|(path, ..)| lab.path(&format!("home/plain/{path}")).exists()).count();
    assert_eq!(brought(&peers[0]) + brought(&peers[1]), CONTENTS.len());
}

#[test]
fn without_the_peer_whose_turn_it_is_everything_comes_from_upstream() {
    let Some(net) = Net::of(3) else { return };
    let upstream = machine(&net, "upstream", "[\"peer\"]", &[]);
    put_all(&upstream);
    let _upstream = serve(&net, 0, &upstream, &[]);
    let order = "[\"peer\", \"upstream\"]";
    // It offers to bring what it has no room to write.
    let peer = machine(&net, "peer1", order, &[]);
    peer.write("home/plain", b"a file where the store's folder should be");
    let _serving = serve(&net, 1, &peer, &["--fetch-missing"]);
    let fresh = machine(&net, "fresh", order, &[1]);
    let (code, said) = apply(&net, 2, &fresh).end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, &said);
    assert_eq!(sent(&net, 0), one_copy());
}

/// A peer that would bring what it lacks from upstream is not asked to, and what it has is not counted as downloaded.
#[test]
fn what_a_peer_would_bring_is_upstream_s_too() {
    let Some(net) = Net::of(3) else { return };
    let upstream = machine(&net, "upstream", "[\"peer\"]", &[]);
    put_all(&upstream);
    let _upstream = serve(&net, 0, &upstream, &[]);
    let order = "[\"peer\", \"upstream\"]";
    let peer = machine(&net, "peer1", order, &[]);
    put(&peer, "a.bin");
    let _serving = serve(&net, 1, &peer, &["--fetch-missing"]);
    let fresh = machine(&net, "fresh", order, &[1]);
    let apply = |more: &[&str]| {
        let arguments: Vec<&str> = ["apply", "--yes"].iter().chain(more).copied().collect();
        Running::start(net.on(2, &fresh.command(&arguments))).end()
    };
    let (code, said) = apply(&["--only-local"]);
    assert_eq!((code, sent(&net, 0)), (Some(4), 0), "{said}");
    assert!(fresh.path("home/plain/a.bin").exists() && !fresh.path("home/plain/b.bin").exists(), "{said}");
    let (code, said) = apply(&["--max-download", "1kB"]);
    assert_eq!((code, sent(&net, 0)), (Some(4), 0), "{said}");
    let (code, said) = apply(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, &said);
}

/// Pulls a host's cable, and puts it in again once `running` has noticed and so much time has passed.
///
/// That it notices again and again is what tells the time: nothing sleeps here.
fn pull_the_cable(net: &Net, host: usize, running: &mut Running, least: Duration) {
    net.unplug(host);
    let begin = Instant::now();
    running.wait_for("again");
    while begin.elapsed() < least {
        running.wait_for("again");
    }
    net.plug(host);
}

/// A machine that is patient enough for a cable that is out for a while.
fn patient(net: &Net, name: &str) -> Lab {
    let lab = machine(net, name, "[\"peer\"]", &[0]);
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    lab.write("inventory.toml", inventory.replace("retries = 8", "retries = 60"));
    lab
}

fn over_http(least: Duration) {
    let Some(net) = Net::of(2) else { return };
    let (peer, fresh) = (machine(&net, "peer0", "[\"peer\"]", &[]), patient(&net, "fresh"));
    put_all(&peer);
    let _serving = serve(&net, 0, &peer, &[]);
    net.slow_down(0, "40mbit");
    let mut running = apply(&net, 1, &fresh);
    wait_until_sent(&net, 0, 6 * MIB as u64);
    pull_the_cable(&net, 0, &mut running, least);
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, &said);
    let sent = sent(&net, 0);
    assert!(sent < one_copy() + 8 * MIB as u64, "{sent} bytes instead of {}", one_copy());
}

fn over_ssh(least: Duration) {
    let Some(net) = Net::of(2) else { return };
    let Some(sshd) = Sshd::start_on(|command| net.on(0, command), &net.address(0)) else { return };
    let (there, here) = (machine(&net, "there", "[\"peer\"]", &[]), patient(&net, "here"));
    put_all(&there);
    net.slow_down(0, "40mbit");
    let words = sshd::remote_words(std::path::Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    let client = sshd.client();
    let arguments = ["copy", "--ssh", &client, "--remote-larder", &words, "pc9:", "--yes", "--progress", "lines"];
    let mut copy = here.command(&arguments);
    copy.env("PATH", "/usr/bin:/bin");
    let before = net.sent(0);
    let mut running = Running::start(net.on(1, &copy));
    let begin = Instant::now();
    while net.sent(0) - before < 6 * MIB as u64 {
        assert!(begin.elapsed() < PATIENCE, "nothing comes");
    }
    pull_the_cable(&net, 0, &mut running, least);
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&here, &said);
    let sent = net.sent(0) - before;
    assert!(sent < one_copy() + 10 * MIB as u64, "{sent} bytes instead of {}", one_copy());
}

#[test]
fn a_cable_that_is_pulled_costs_only_what_was_on_it() {
    over_http(Duration::ZERO);
}

#[test]
fn a_cable_that_is_pulled_from_a_copy_by_ssh_costs_only_what_was_on_it() {
    over_ssh(Duration::ZERO);
}

/// Longer than ssh believes in a connection that says nothing: every one of them is made anew.
#[test]
#[ignore = "takes a minute: scripts/cables"]
fn a_cable_that_is_out_for_longer_than_half_a_minute_costs_only_what_was_on_it() {
    over_http(Duration::from_secs(30));
    over_ssh(Duration::from_secs(35));
}

#[test]
fn a_network_that_loses_packets_loses_no_bytes() {
    let Some(net) = Net::of(2) else { return };
    let (peer, fresh) = (machine(&net, "peer0", "[\"peer\"]", &[]), machine(&net, "fresh", "[\"peer\"]", &[0]));
    put_all(&peer);
    let _serving = serve(&net, 0, &peer, &[]);
    if !net.lose(1, 5) {
        return;
    }
    let (code, said) = apply(&net, 1, &fresh).end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, &said);
}

/// The first run is killed, and the server too; the second run takes what the first one did not have on its disk.
#[test]
fn whichever_side_is_killed_only_what_is_missing_comes_again() {
    let Some(net) = Net::of(2) else { return };
    let (peer, fresh) = (machine(&net, "peer0", "[\"peer\"]", &[]), machine(&net, "fresh", "[\"peer\"]", &[0]));
    put_all(&peer);
    let serving = serve(&net, 0, &peer, &[]);
    net.slow_down(0, "60mbit");
    let killed = apply(&net, 1, &fresh);
    wait_until_sent(&net, 0, 10 * MIB as u64);
    drop(killed);
    let before = sent(&net, 0);
    drop(serving);
    let mut running = apply(&net, 1, &fresh);
    running.wait_for("cannot be reached");
    let (code, said) = running.end();
    assert_ne!(code, Some(0), "nobody is there: {said}");
    let mut serving = Some(serve(&net, 0, &peer, &[]));
    let mut running = apply(&net, 1, &fresh);
    wait_until_sent(&net, 0, 2 * MIB as u64);
    let between = sent(&net, 0);
    serving.take();
    running.wait_for("again");
    let _again = serve(&net, 0, &peer, &[]);
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_has_all(&fresh, &said);
    let all = before + between + sent(&net, 0);
    assert!(all < one_copy() + 12 * MIB as u64, "{all} bytes instead of {}", one_copy());
}
