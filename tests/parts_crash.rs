//! Large files and everything that can happen to the program while they come: kill -9, several programs at once, a stop.
//!
//! `LARDER_CRASH_ROUNDS=300` for a long run, `LARDER_CRASH_SEED` for other moments: `scripts/crash`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::Child;
use std::time::{Duration, Instant};

use larder::fsio::{WriteOptions, write_atomic};
use rstest::rstest;

#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/machine.rs"]
mod machine;
#[path = "support/nginx.rs"]
mod nginx;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/one_file.rs"]
mod one_file;
#[path = "support/skip.rs"]
mod skip;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/upstream.rs"]
mod upstream;
#[expect(dead_code, reason = "each test uses a part of it")]
#[path = "support/wanting.rs"]
mod wanting;

use chance::{Random, number};
use nginx::Nginx;
use wanting::{CONNECTIONS, CONTENT, LOST_BY_KILL, Wanting, serve, size};

/// What may be on its way when nobody wants it any more.
const PIECE_CUT_OFF: u64 = 2 << 20;

#[test]
fn no_kill_costs_more_than_what_was_under_way_from_nginx() {
    if !nginx::is_installed() {
        return skip::skipped("nginx is not installed (apt-get install nginx-light)");
    }
    let (rounds, mut random) = (number("LARDER_CRASH_ROUNDS", 6), Random(number("LARDER_CRASH_SEED", 1)));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    write_atomic(&folder.path().join("model.bin"), &CONTENT, &WriteOptions::default()).unwrap();
    let mut kills = 0;
    while kills < rounds {
        let nginx = Nginx::start(folder.path(), "12m");
        let wanting = Wanting::from_url(&nginx.address.to_string(), CONNECTIONS, None);
        let begin = Instant::now();
        wanting.must_finish();
        let longest = begin.elapsed();
        wanting.start_over();
        let killed = wanting.live(&mut random, longest, (rounds - kills).min(8));
        let served = nginx.end();
        assert!(served.most_open >= 4, "{} answers at once", served.most_open);
        let (sent, bound) = (served.sent, 2 * size() + (killed + 1) * LOST_BY_KILL);
        assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained by {killed} kills");
        kills += killed;
    }
}

#[test]
fn no_kill_costs_more_than_what_was_under_way_from_our_own_server() {
    let (rounds, mut random) = (number("LARDER_CRASH_ROUNDS", 6), Random(number("LARDER_CRASH_SEED", 2)));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let upstream = serve(folder.path());
    let wanting = Wanting::from_hub(&upstream.address.to_string(), CONNECTIONS);
    // Pieces of 16 KiB.
    upstream.set_pace(Duration::from_micros(700));
    let begin = Instant::now();
    wanting.must_finish();
    let (longest, mut kills) = (begin.elapsed(), 0);
    while kills < rounds {
        wanting.start_over();
        let before = upstream.sent();
        let killed = wanting.live(&mut random, longest, (rounds - kills).min(8));
        let (sent, bound) = (upstream.sent() - before, size() + (killed + 1) * LOST_BY_KILL);
        assert!(sent <= bound, "{sent} bytes were sent, {bound} can be explained by {killed} kills");
        kills += killed;
    }
    assert!(upstream.most_open() >= 4, "{} answers at once", upstream.most_open());
}

/// The large file crosses the wire once, also where it comes in parts over several connections.
#[rstest]
fn of_several_programs_at_once_one_fetches(
    #[values(2, 8)] programs: usize,
    #[values(1, CONNECTIONS)] connections: u64,
) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let upstream = serve(folder.path());
    let wanting = Wanting::from_hub(&upstream.address.to_string(), connections);
    upstream.set_pace(Duration::from_micros(300));
    upstream.hold_after(size() / 2);
    let children: Vec<Child> = (0..programs).map(|_| wanting.begin()).collect();
    upstream.wait_until_held();
    upstream.release();
    for child in children {
        Wanting::end(child).must_be(0);
    }
    wanting.nothing_visible_is_wrong();
    assert!(wanting.place().exists());
    let (sent, asked) = (upstream.sent(), upstream.take_asked());
    if connections == 1 {
        return assert_eq!((sent, asked.len()), (size(), 1), "by {programs} programs");
    }
    assert!(upstream.most_open() >= 4, "{} answers at once", upstream.most_open());
    // A range that was shared with another connection may be a piece longer on the way than what is taken of it.
    let bound = size() + connections * PIECE_CUT_OFF;
    assert!(sent <= bound, "{sent} of {} bytes by {programs} programs: {asked:#?}", size());
    let begun: std::collections::BTreeSet<u64> = asked.iter().map(|asked| asked.from).collect();
    assert_eq!(begun.len(), asked.len(), "no range is asked for twice: {asked:#?}");
}

#[test]
fn a_stop_ends_it_within_a_second_and_keeps_what_came() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let upstream = serve(folder.path());
    let wanting = Wanting::from_hub(&upstream.address.to_string(), 1);
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        wanting.start_over();
        let before = upstream.sent();
        upstream.hold_after(size() / 2);
        let child = wanting.begin();
        upstream.wait_until_held();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let begin = Instant::now();
        Wanting::end(child).must_be(130).must_say(&["continues from here"]);
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        upstream.release();
        wanting.must_finish();
        // Half had been sent: what was in the sockets' buffers and the chunk under way are sent again, not more.
        let sent = upstream.sent() - before;
        assert!(sent <= size() + size() / 4, "{sent} bytes were sent");
    }
}
