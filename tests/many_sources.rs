//! One file from several places at once: peers and a drive side by side, a peer that lies, and what the report says of it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use larder::digest::Sha256;

#[path = "support/scripted.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod scripted;

#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod program;

use program::Lab;
use scripted::{Reply, Scripted};

const MIB: usize = 1 << 20;
/// How a file is cut into chunks that have digests of their own.
const CHUNK: u64 = 4 * MIB as u64;

/// Content that differs everywhere, so that a wrong offset shows.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (seed ^ (seed >> 29)).to_le_bytes()
    };
    std::iter::repeat_with(next).take(len.div_ceil(8)).collect::<Vec<_>>().concat()[..len].to_vec()
}

type Contents = Vec<(&'static str, Vec<u8>)>;

fn manifest(contents: &Contents) -> String {
    let file = |(path, bytes): &(&str, Vec<u8>)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n";
    format!("{head}{}", contents.iter().map(file).collect::<String>())
}

/// The same, where one server has every file.
fn manifest_of(contents: &Contents, upstream: &Scripted) -> String {
    manifest(contents).replace("path = ", &format!("source = \"{}\"\npath = ", upstream.url()))
}

/// A machine with these keys in its sources; one file at a time, so that a test knows what came before what.
fn machine(contents: &Contents, sources: &str) -> Lab {
    let inventory = format!(
        "manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n[machines.pc1]\n\
         [stores]\nplain = {{ layout = \"folder\", path = \"~/plain\" }}\n\
         [sources]\nparallel = 1\nretries = 1\nretry-pause = \"1 ms\"\n{sources}"
    );
    Lab::new(&inventory, &manifest(contents))
}

/// The same, with an upstream that has the one file.
fn machine_with(upstream: &Scripted, contents: &Contents, sources: &str) -> Lab {
    let lab = machine(contents, sources);
    lab.write("manifests/lab.toml", manifest_of(contents, upstream).as_bytes());
    lab
}

/// A machine that hands out what it has; ends when dropped.
struct Peer {
    lab: Lab,
    address: String,
    child: Child,
}

impl Peer {
    /// Has all of `contents`, has read them once, and hands them out at `rate`.
    fn with(contents: &Contents, rate: &str) -> Self {
        Self::that(contents, rate, true)
    }

    /// The same, and knows what the chunks of its files are only where it `has_read` them.
    fn that(contents: &Contents, rate: &str, has_read: bool) -> Self {
        let lab = machine(contents, "order = []\n");
        contents.iter().for_each(|(path, bytes)| lab.write(&format!("home/plain/{path}"), bytes));
        if has_read {
            let verified = lab.run(&["verify"]);
            assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
        }
        let mut serve = lab.command(&["serve", "--address", "127.0.0.1:0", "--max-rate", rate]);
        let mut child = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = said.find_map(|line| Some(line.split_once(" at http://")?.1.to_owned())).unwrap();
        // It must always be able to say something.
        std::thread::spawn(move || said.for_each(drop));
        Self { lab, address: address.split_whitespace().next().unwrap().to_owned(), child }
    }

    /// One bit of a file is another one from now on; the server has not noticed.
    fn rot(&self, path: &str, at: usize) {
        use std::os::unix::fs::FileExt as _;
        let place = self.lab.path(&format!("home/plain/{path}"));
        let file = std::fs::OpenOptions::new().read(true).write(true).open(place).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
    }

    /// Bytes of content that it has handed out.
    fn sent(&self) -> u64 {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut metrics = String::new();
        connection.read_to_string(&mut metrics).unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("larder_serve_sent_bytes_total "));
        line.unwrap_or_else(|| panic!("no metrics: {metrics}")).parse().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peers by these names, as an inventory lists them.
fn peers(peers: &[(&str, &Peer)]) -> String {
    let peer = |(name, peer): &(&str, &Peer)| format!("{{ name = \"{name}\", url = \"http://{}\" }}", peer.address);
    format!("peers = [{}]\n", peers.iter().map(peer).collect::<Vec<_>>().join(", "))
}

fn assert_has_all(lab: &Lab, contents: &Contents) {
    for (path, bytes) in contents {
        assert!(std::fs::read(lab.path(&format!("home/plain/{path}"))).unwrap() == *bytes, "{path}");
    }
}

/// A drive that has `contents` under their paths.
fn drive(contents: &Contents) -> tempfile::TempDir {
    let drive = tempfile::tempdir().unwrap();
    let put = |(path, bytes): &(&str, Vec<u8>)| {
        larder::fsio::write_atomic(&drive.path().join(path), bytes, &larder::fsio::WriteOptions::default()).unwrap();
    };
    contents.iter().for_each(put);
    drive
}

fn drives(drive: &Path) -> String {
    format!("drives = [{:?}]\n", drive.display().to_string())
}

#[test]
fn two_peers_and_a_drive_give_parts_of_one_file_at_the_same_time() {
    let contents = vec![("large.bin", noise(1, 48 * MIB))];
    let (one, other, usb) = (Peer::with(&contents, "4MB/s"), Peer::with(&contents, "4MB/s"), drive(&contents));
    let sources =
        format!("order = [\"peer\", \"drive\"]\n{}{}", peers(&[("pc2", &one), ("pc3", &other)]), drives(usb.path()));
    let fresh = machine(&contents, &sources);
    let applied = fresh.run(&["apply", "--yes", "--json"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert_has_all(&fresh, &contents);
    let outcome: serde_json::Value = serde_json::from_str(&applied.out).unwrap();
    let (moved, sent) = (outcome["moved_bytes"].as_u64().unwrap(), [one.sent(), other.sent()]);
    let least = MIB as u64;
    // What the servers sent and nobody wanted any more lay in sockets; the drive gave the rest.
    assert!(sent.iter().all(|sent| *sent > least), "{sent:?} of {moved}");
    assert!(moved > sent.iter().sum::<u64>() + least, "{sent:?} of {moved}");
    assert_eq!(outcome["left_out"], serde_json::json!([]));
}

#[test]
fn a_drive_that_nobody_shares_is_copied_and_one_that_lies_is_named() {
    let contents = vec![("large.bin", noise(2, 9 * MIB)), ("small.bin", noise(3, 1000))];
    let (peer, usb) = (Peer::with(&contents, "1GB/s"), drive(&contents));
    let alone = machine(&contents, &format!("order = [\"drive\"]\n{}", drives(usb.path())));
    let applied = alone.run(&["apply", "--yes"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(applied.out.contains("copied from other places on this machine"), "{}", applied.out);
    assert!(!applied.out.contains("stood in"), "{}", applied.out);
    let rotten: Contents =
        contents.iter().map(|(path, bytes)| (*path, bytes.iter().map(|byte| !byte).collect())).collect();
    let usb = drive(&rotten);
    let sources = format!("order = [\"drive\", \"peer\"]\n{}{}", peers(&[("pc2", &peer)]), drives(usb.path()));
    let fresh = machine(&contents, &sources);
    let applied = fresh.run(&["apply", "--yes"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert_has_all(&fresh, &contents);
    for path in ["large.bin", "small.bin"] {
        let named = format!("others stood in for file:{}", usb.path().join(path).display());
        assert!(applied.out.contains(&named), "{named}: {}", applied.out);
    }
}

/// The first peer has one wrong bit. Nobody has told the fresh machine what the chunks are; the other peers know.
#[test]
fn a_peer_that_lies_costs_one_chunk_is_named_and_not_asked_again() {
    let contents = vec![("a.bin", noise(4, 24 * MIB)), ("b.bin", noise(5, 12 * MIB)), ("c.bin", noise(6, 1000))];
    let [liar, one, other] = [(); 3].map(|()| Peer::with(&contents, "6MB/s"));
    liar.rot("a.bin", 70_000);
    let sources = format!("order = [\"peer\"]\n{}", peers(&[("liar", &liar), ("pc2", &one), ("pc3", &other)]));
    let fresh = machine(&contents, &sources);
    let first = fresh.run(&["apply", "--yes", "--progress", "json"]);
    assert_eq!(first.code, 0, "{}{}", first.out, first.err);
    assert_has_all(&fresh, &contents);
    assert!(first.out.contains("others stood in for peer:liar: tiny/a.bin: "), "{}", first.out);
    assert!(!first.out.contains("peer:pc2") && !first.out.contains("peer:pc3"), "{}", first.out);
    let all: u64 = contents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let sent = [&liar, &one, &other].map(Peer::sent);
    // What is on its way when nobody wants it any more counts as sent: a few MiB for each connection that ends.
    assert!(sent.iter().sum::<u64>() < all + 3 * CHUNK, "{sent:?} for {all}");
    assert!(sent[0] > 0 && sent[0] < contents[0].1.len() as u64, "only the first file was asked of the liar: {sent:?}");
    let asked_later = first.err.lines().filter(|line| line.contains("b.bin") && line.contains("peer:liar")).count();
    assert_eq!(asked_later, 0, "{}", first.err);
}

/// Nobody knows the chunks: what one sender sent comes again from the others.
#[test]
fn where_nobody_knows_the_chunks_the_parts_of_one_sender_come_again() {
    let contents = vec![("a.bin", noise(7, 24 * MIB))];
    let [liar, one] = [(); 2].map(|()| Peer::that(&contents, "6MB/s", false));
    liar.rot("a.bin", 70_000);
    let sources = format!("order = [\"peer\"]\n{}", peers(&[("liar", &liar), ("pc2", &one)]));
    let fresh = machine(&contents, &sources);
    let applied = fresh.run(&["apply", "--yes", "--json"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert_has_all(&fresh, &contents);
    let outcome: serde_json::Value = serde_json::from_str(&applied.out).unwrap();
    let left_out = outcome["left_out"].as_array().unwrap();
    assert!(left_out.len() == 1 && left_out[0]["from"] == "peer:liar", "{outcome:#}");
}

/// One fetch of a file of so many MiB from a peer at `rate`, with upstream behind it in the order of sources: what peer and upstream
/// sent, how often upstream was asked, and all that was said.
fn from_a_peer_at(mib: usize, rate: &str, sources: &str, arguments: &[&str]) -> (u64, u64, usize, String) {
    let contents = vec![("large.bin", noise(9, mib * MIB))];
    let upstream = Scripted::start(std::sync::Arc::new(contents[0].1.clone()), |_| Reply::default());
    let peer = Peer::with(&contents, rate);
    let fresh = machine_with(&upstream, &contents, &format!("{sources}{}", peers(&[("pc2", &peer)])));
    let applied = fresh.run(&[&["apply", "--yes"], arguments].concat());
    let said = format!("{}{}", applied.out, applied.err);
    assert_eq!(applied.code, 0, "{rate} {sources} {arguments:?}: {said}");
    assert_has_all(&fresh, &contents);
    (peer.sent(), upstream.sent(), upstream.take_asked().len(), said)
}

const BOTH: &str = "order = [\"peer\", \"upstream\"]\n";

#[test]
fn upstream_helps_a_peer_that_is_far_too_slow() {
    let (peer, upstream, asked, said) = from_a_peer_at(32, "300KB/s", BOTH, &[]);
    let size = 32 * MIB as u64;
    assert!(asked >= 1 && upstream > size / 2 && peer > MIB as u64, "{peer} and {upstream} bytes: {said}");
    // What the peer was still sending when others were done with it.
    assert!(peer + upstream <= size + 3 * MIB as u64, "nothing comes twice: {peer} and {upstream} bytes");
    assert_eq!(said.matches("helps from now on").count(), 1, "{said}");
}

/// It takes longer than the span after which a slow one is helped.
#[test]
fn upstream_is_left_alone_while_a_peer_is_fast_enough() {
    let (_, upstream, asked, said) = from_a_peer_at(9, "750KB/s", BOTH, &[]);
    assert_eq!((upstream, asked), (0, 0), "{said}");
}

#[test]
fn upstream_does_not_help_where_it_must_not() {
    let cases: [(&str, &[&str]); 4] = [
        ("order = [\"peer\"]\n", &[]),
        (BOTH, &["--only-local"]),
        // It is upstream's bytes that are counted.
        (BOTH, &["--max-download", "1GB"]),
        ("too-slow = \"never\"\norder = [\"peer\", \"upstream\"]\n", &[]),
    ];
    std::thread::scope(|scope| {
        for (sources, arguments) in cases {
            scope.spawn(move || {
                let (_, upstream, asked, said) = from_a_peer_at(9, "400KB/s", sources, arguments);
                assert_eq!((upstream, asked), (0, 0), "{sources} {arguments:?}: {said}");
            });
        }
    });
}
