//! A large file that comes from Xet in parts, over several connections: killed at random bytes, lied to by one block,
//! with passes that run out. What is fetched again stays within what was under way.
//!
//! `LARDER_CRASH_ROUNDS=300` for a long run, `LARDER_CRASH_SEED` for other moments: `scripts/crash`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/cas.rs"]
mod cas;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/hub.rs"]
mod hub;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;

use cas::Cas;
use chance::{Random, number};
use hub::{Hub, Xet};
use machine::Machine;

const CHUNK: u64 = 4 << 20;
/// Six chunks and a bit.
const SIZE: usize = 6 * CHUNK as usize + 12_345;
/// For each 16 KiB: slow enough that a stretch stays at two megabytes.
const PAUSE: Duration = Duration::from_millis(12);
/// What one connection has asked for and not yet got: a stretch, the ends of its chunks, and what lies in sockets.
const UNDER_WAY: u64 = (2 << 20) + (512 << 10);
/// The longest chunk of the store: one that a stretch ends in comes with the next stretch again.
const CHUNK_OF_XET: u64 = 128 << 10;

/// A hub whose one large file lies in a store, and a machine that wants it.
struct World {
    hub: Hub,
    cas: Cas,
    machine: Machine,
    content: Vec<u8>,
}

impl World {
    /// The machine makes so many connections from the beginning.
    fn with(connections: u64) -> Self {
        let mut random = Random(5);
        let content = random.bytes(SIZE);
        let (hub, cas) = (Hub::start(), Cas::start(None));
        let name = cas.upload(&[&content]).remove(0);
        let hashes = HashMap::from([(hub::sha256(&content), name)]);
        hub.keep_in_xet(Xet { address: cas.address.clone(), hashes, pass: cas.passes() });
        hub.commit("acme/tiny", &[("model.bin", &content, true)]);
        let inventory = format!(
            "manifests = [\"manifests/*.toml\"]\nmachine = \"pc1\"\n\n[stores]\ncache = {{ layout = \"hf-cache\", path = \"~/hub\" }}\n\n\
             [machines]\npc1 = {{}}\n\n[sources]\nhub = \"{}\"\nconnections = {connections}\nfirst-connections = {connections}\n",
            hub.origin
        );
        let machine =
            Machine::new(&inventory, "[[artifact]]\nname = \"tiny\"\nsource = \"hf:acme/tiny\"\nstore = \"cache\"\n");
        machine.larder(&["lock"]).must_be(0);
        Self { hub, cas, machine, content }
    }

    /// Whether the file is there; never, with other bytes than the right ones.
    fn has_it(&self) -> bool {
        let blob = self.machine.path("hub/models--acme--tiny/blobs").join(hub::sha256(&self.content));
        let found = fs_err::read(blob).ok();
        found.is_some_and(|bytes| {
            assert!(bytes == self.content, "the content is wrong");
            true
        })
    }

    /// Bytes that are still to come, as the plan says.
    fn to_come(&self) -> u64 {
        let plan = self.machine.larder(&["plan", "--json"]).must_be(0).json();
        let steps = plan["artifacts"][0]["steps"].as_array().unwrap();
        steps.iter().filter_map(|step| step["bytes"].as_u64()).sum()
    }

    fn remove(&self, folders: &[&str]) {
        for folder in folders.iter().map(|folder| self.machine.path(folder)).filter(|folder| folder.exists()) {
            #[expect(clippy::disallowed_methods, reason = "the test's own folder")]
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    /// Bytes that may have come twice so far, because stretches end within chunks.
    fn ends(&self) -> u64 {
        self.cas.count(cas::Logged::is_question) as u64 * CHUNK_OF_XET
    }

    /// Bytes that came by plain ranges.
    fn plain(&self) -> u64 {
        self.hub.log().iter().filter(|asked| asked.on_cdn).map(|asked| asked.sent).sum()
    }

    /// Starts larder and kills it once the store has sent so many bytes more; whether it was in time.
    fn kill_after(&self, bytes: u64) -> bool {
        let until = self.cas.sent() + bytes;
        let mut command = self.machine.command(&["apply", "--yes"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while self.cas.sent() < until && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() || status.code().is_none(), "it ended by itself and failed: {status}");
        !status.success()
    }
}

#[test]
fn no_kill_over_xet_costs_more_of_a_large_file_than_what_was_under_way() {
    const CONNECTIONS: u64 = 2;
    // The chunks under way count for nothing, however much of them has come.
    const LOST_BY_KILL: u64 = CONNECTIONS * (CHUNK + UNDER_WAY);
    let (rounds, mut random) = (number("LARDER_CRASH_ROUNDS", 2), Random(number("LARDER_CRASH_SEED", 1)));
    let world = World::with(CONNECTIONS);
    world.cas.set_pause(PAUSE);
    let mut kills = 0;
    while kills < rounds {
        world.remove(&["hub", ".local"]);
        let (begin, begin_ends, mut killed) = (world.cas.sent(), world.ends(), 0);
        let mut missing = SIZE as u64;
        while killed < (rounds - kills).min(3) {
            let before = world.cas.sent();
            if !world.kill_after(random.next() % missing) {
                break;
            }
            killed += 1;
            assert!(!world.has_it(), "it was killed before the end");
            let (came, kept) = (world.cas.sent() - before, missing - world.to_come());
            assert!(came <= kept + LOST_BY_KILL + came / 8, "of {came} bytes that were sent {kept} were kept");
            missing -= kept;
        }
        let (before, before_ends) = (world.cas.sent(), world.ends());
        world.machine.larder(&["apply", "--yes"]).must_be(0);
        assert!(world.has_it());
        let (sent, ends) = (world.cas.sent() - before, world.ends() - before_ends);
        // The plan counts the short last chunk as a whole one.
        assert!(sent <= missing + CHUNK + ends, "{sent} bytes were sent where {missing} were missing");
        let (all, bound) =
            (world.cas.sent() - begin, SIZE as u64 + (world.ends() - begin_ends) + killed * LOST_BY_KILL);
        assert!(all <= bound, "{all} bytes were sent, {bound} can be explained by {killed} kills");
        kills += killed.max(1);
    }
    assert_eq!(world.plain(), 0, "all of it came from the store");
}

#[test]
fn a_block_that_lies_costs_its_chunk_where_chunks_are_known() {
    let world = World::with(4);
    world.machine.larder(&["apply", "--yes"]).must_be(0);
    assert!(world.has_it() && world.plain() == 0);
    // What was learnt of its chunks stays.
    world.remove(&["hub/models--acme--tiny"]);
    let before = world.cas.sent();
    world.cas.lie_once();
    let said = world.machine.larder(&["apply", "--yes", "--progress", "json"]).must_be(0);
    assert!(world.has_it());
    assert!(!said.err.contains("\"restarted\""), "{said}");
    assert_eq!(said.err.matches("\"lost\"").count(), 1, "{said}");
    let (by_xet, plain) = (world.cas.sent() - before, world.plain());
    assert!(plain >= CHUNK, "the wrong chunk comes another way: {plain} bytes");
    let bound = SIZE as u64 + CHUNK + world.ends() + 4 * (1 << 20);
    assert!(by_xet + plain <= bound, "{by_xet} and {plain} bytes were sent, {bound} can be explained");
    world.machine.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn a_block_that_lies_is_found_by_the_whole_where_chunks_are_not_known() {
    let world = World::with(4);
    world.cas.lie_once();
    let said = world.machine.larder(&["apply", "--yes", "--progress", "json"]).must_be(0);
    assert!(world.has_it());
    assert_eq!(said.err.matches("\"restarted\"").count(), 1, "{said}");
    let (by_xet, plain, size) = (world.cas.sent(), world.plain(), SIZE as u64);
    assert!(by_xet <= size + world.ends(), "the store is asked for all of it once: {by_xet} bytes");
    assert!(plain >= size && plain <= size + 4 * (1 << 20), "{plain} bytes came by plain ranges");
    world.machine.larder(&["verify", "--full"]).must_be(0);
}

#[test]
fn passes_that_run_out_again_and_again_cost_no_byte_of_a_large_file() {
    let world = World::with(2);
    // A third as slow: stretches of four megabytes.
    world.cas.set_pause(PAUSE / 3);
    world.cas.limit_passes(3);
    world.machine.larder(&["apply", "--yes"]).must_be(0);
    assert!(world.has_it());
    let refused = world.cas.count(|asked| asked.status == 401);
    let passes = world.hub.count(|asked| asked.path.contains("/xet-read-token/"));
    assert!(passes >= 3 && refused >= passes - 1, "{passes} passes, {refused} refusals");
    // Both connections may be refused with the same pass; it is replaced once.
    assert!(refused <= 2 * (passes - 1), "{passes} passes, {refused} refusals");
    assert_eq!(world.plain(), 0, "a pass that has run out is no reason to leave the store");
    assert!(world.cas.sent() <= SIZE as u64 + world.ends(), "{} bytes were sent", world.cas.sent());
}
