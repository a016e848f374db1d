//! Large files are fetched in parts: whatever servers, disks and stops do to them, the file is right, and
//! what was here does not come twice.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder::fsio::{WriteOptions, write_atomic};
use larder::monitor::Event;
use larder::observe::Proof;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio_util::sync::CancellationToken;

#[path = "support/one_file.rs"]
mod one_file;
#[path = "support/scripted.rs"]
mod scripted;

use one_file::{OneFile, noise};
use scripted::{Asked, Reply, Scripted};

const CHUNK: u64 = 4 << 20;
/// What a stop may cost: for each of four connections the chunk under way, and what is in memory.
const LOST_BY_STOP: u64 = 4 * CHUNK + (8 << 20);
/// What may come in one piece with the end of a range, where another connection fetches what is behind it.
const PIECE_CUT_OFF: u64 = 1 << 20;

/// Five chunks and a bit.
static CONTENT: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| noise(5 * CHUNK as usize + 12_345));

fn size() -> u64 {
    CONTENT.len() as u64
}

fn good(content: &Arc<Vec<u8>>) -> Scripted {
    Scripted::start(content.clone(), |_| Reply::default())
}

fn change(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Fetches about `bytes` of the file and stops.
async fn fetch_a_part(machine: &OneFile, bytes: u64) {
    let server = Scripted::start(machine.content.clone(), move |asked: Asked| Reply {
        cut_after: Some(bytes.saturating_sub(asked.start)),
        pause: Duration::from_millis(2),
        ..Reply::default()
    });
    let stop = CancellationToken::new();
    let watch = async {
        while machine.heard("Retrying").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let urls = [server.url()];
    let (outcome, ()) = tokio::join!(machine.apply_until(&urls, stop.clone()), watch);
    assert!(outcome.interrupted, "{outcome:?}");
    assert!(!machine.place().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_comes_by_one_request_where_one_is_enough() {
    let (machine, server) = (OneFile::new(&CONTENT), good(&CONTENT));
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!((outcome.moved_bytes, server.take_asked().len()), (size(), 1));
}

/// What was measured on arrival is true of the file that arrived, not of what lies there a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_at_once_is_not_said_to_be_proven() {
    let (machine, server) = (OneFile::new(&CONTENT), good(&CONTENT));
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert!(matches!(machine.proof(), Proof::Proven { .. }));
    for by_a_new_file in [true, false] {
        let machine = OneFile::new(&CONTENT);
        let place = machine.place();
        machine.meanwhile(move |event| {
            if !matches!(event, Event::Finished { item } if item.ends_with("model.bin")) {
                return;
            }
            let other = vec![7; CONTENT.len()];
            if by_a_new_file {
                write_atomic(&place, &other, &WriteOptions::default()).unwrap();
            } else {
                change(&place, 0, &other);
            }
        });
        machine.apply(&[server.url()]).await;
        assert_eq!(machine.proof(), Proof::Unknown);
    }
}

/// What may happen between the first byte and the last.
#[derive(Debug, Clone)]
enum Mishap {
    Cut(u64),
    Refuse(u16),
    Slow,
    /// The run is stopped once so many bytes were sent.
    Stop(u64),
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        4 => (300_000..3 * CHUNK).prop_map(Mishap::Cut),
        1 => prop::sample::select(vec![500_u16, 503, 429, 408]).prop_map(Mishap::Refuse),
        1 => Just(Mishap::Slow),
        2 => (1..size()).prop_map(Mishap::Stop),
    ]
}

fn reply(mishap: Option<&Mishap>) -> Reply {
    match mishap {
        Some(Mishap::Cut(after)) => Reply { cut_after: Some(*after), ..Reply::default() },
        Some(Mishap::Refuse(status)) => Reply { refuse: Some(*status), ..Reply::default() },
        Some(Mishap::Slow) => Reply { pause: Duration::from_micros(300), ..Reply::default() },
        Some(Mishap::Stop(_)) | None => Reply::default(),
    }
}

/// Runs until the file is there; returns the bytes that came, and how often it was stopped.
async fn live_through(machine: &OneFile, mishaps: &[Mishap]) -> (u64, u64) {
    let list = mishaps.to_vec();
    let server = Scripted::start(CONTENT.clone(), move |asked| reply(list.get(asked.number)));
    let (mut moved, mut stops) = (0, 0);
    for mishap in mishaps {
        let Mishap::Stop(after) = mishap else { continue };
        let stop = CancellationToken::new();
        let limit = server.sent() + after;
        let watch = async {
            while server.sent() < limit && !machine.place().exists() {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let urls = [server.url()];
        let (outcome, ()) = tokio::join!(machine.apply_until(&urls, stop.clone()), watch);
        assert!(outcome.failures.is_empty(), "{outcome:?}");
        moved += outcome.moved_bytes;
        stops += 1;
    }
    let outcome = machine.apply(&[server.url()]).await;
    assert!(outcome.failures.is_empty(), "{outcome:?}");
    assert!(fs_err::read(machine.place()).unwrap() == **CONTENT, "the content is wrong");
    (moved + outcome.moved_bytes, stops)
}

#[test]
fn any_schedule_of_failures_and_stops_yields_the_same_file() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
    let most = AtomicUsize::new(0);
    let schedules = (prop::collection::vec(mishap(), 0..8), 1..=4_usize);
    let outcome = runner.run(&schedules, |(mishaps, first_connections)| {
        let mut machine = OneFile::new(&CONTENT);
        machine.first_connections = first_connections;
        let (moved, stops) = runtime.block_on(live_through(&machine, &mishaps));
        most.fetch_max(machine.most_connections(), Ordering::Relaxed);
        let bound = size() + stops * LOST_BY_STOP + if first_connections > 1 { 4 * PIECE_CUT_OFF } else { 0 };
        prop_assert!(moved <= bound, "{moved} bytes came, {bound} can be explained by {stops} stops");
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(most.load(Ordering::Relaxed), 4, "connections at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_within_a_run_cost_no_byte() {
    let machine = OneFile::new(&CONTENT);
    let server = Scripted::start(CONTENT.clone(), |_| Reply { cut_after: Some(700_001), ..Reply::default() });
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    // What was handed to the connection before it broke may be lost in its buffers, but never comes twice.
    assert!(outcome.moved_bytes <= size(), "{} bytes", outcome.moved_bytes);
    assert!(server.take_asked().len() as u64 >= size() / 700_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_keeps_what_came_and_takes_no_time() {
    let machine = OneFile::new(&CONTENT);
    fetch_a_part(&machine, 3 * CHUNK + 1).await;
    assert!(machine.partial().exists() && machine.journal().exists());
    let server = good(&CONTENT);
    let (plan, _) = machine.plan(&[server.url()]);
    assert_eq!(plan.bytes_to_move(), size() - 3 * CHUNK, "the plan knows what is here");
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!(outcome.moved_bytes, size() - 3 * CHUNK);

    let machine = OneFile::new(&CONTENT);
    let server = Scripted::start(CONTENT.clone(), |_| Reply { pause: Duration::from_millis(20), ..Reply::default() });
    let (stop, urls) = (CancellationToken::new(), [server.url()]);
    let stopped_at = async {
        while server.sent() < 1 << 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
        Instant::now()
    };
    let (outcome, begin) = tokio::join!(machine.apply_until(&urls, stop.clone()), stopped_at);
    assert!(outcome.interrupted && begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_between_two_runs_costs_its_chunk_only() {
    let machine = OneFile::new(&CONTENT);
    fetch_a_part(&machine, 4 * CHUNK).await;
    let at = CHUNK + 77;
    change(&machine.partial(), at, &[CONTENT[at as usize] ^ 0x20]);
    let server = good(&CONTENT);
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!(outcome.moved_bytes, size() - 4 * CHUNK + CHUNK, "{:#?}", server.take_asked());
    assert_eq!(machine.heard("Lost").len(), 1);
    assert!(machine.heard("Restarted").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_a_power_cut_took_come_again() {
    let machine = OneFile::new(&CONTENT);
    fetch_a_part(&machine, 4 * CHUNK).await;
    change(&machine.partial(), 2 * CHUNK, &vec![0; CHUNK as usize + 4096]);
    let server = good(&CONTENT);
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!(outcome.moved_bytes, size() - 4 * CHUNK + 2 * CHUNK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_or_foreign_journal_is_thrown_away_and_links_are_not_followed() {
    let machine = OneFile::new(&CONTENT);
    let server = good(&CONTENT);
    for damage in [&b"larderJ1 and something else"[..], b""] {
        fetch_a_part(&machine, 3 * CHUNK).await;
        fs_err::OpenOptions::new().write(true).open(machine.journal()).unwrap().set_len(0).unwrap();
        change(&machine.journal(), 0, damage);
        let outcome = machine.apply(&[server.url()]).await;
        machine.must_be_right(&outcome);
        assert_eq!(outcome.moved_bytes, size());
        machine.remove();
    }
    let victim = machine.place().with_file_name("victim");
    larder::fsio::write_atomic(&victim, b"precious", &larder::fsio::WriteOptions::default()).unwrap();
    for name in [machine.journal(), machine.partial()] {
        larder::fsio::symlink_atomic(&victim, &name, None).unwrap();
        let outcome = machine.apply(&[server.url()]).await;
        assert!(outcome.failures[0].reason.contains("is a link"), "{outcome:?}");
        assert_eq!(fs_err::read(&victim).unwrap(), b"precious");
        #[expect(clippy::disallowed_methods, reason = "the test's own link")]
        std::fs::remove_file(&name).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_grew_without_a_journal_is_continued() {
    let (mut machine, server) = (OneFile::new(&CONTENT), good(&CONTENT));
    let had = 2 * CHUNK as usize + 5;
    larder::fsio::write_atomic(&machine.partial(), &CONTENT[..had], &larder::fsio::WriteOptions::default()).unwrap();
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!(outcome.moved_bytes, size() - 2 * CHUNK);
    // Where it turns out to be something else, it comes anew, and nothing else does.
    machine.remove();
    larder::fsio::write_atomic(&machine.partial(), &vec![7; had], &larder::fsio::WriteOptions::default()).unwrap();
    machine.facts = Arc::new(larder::facts::Facts::in_memory().unwrap());
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!((machine.heard("Lost").len(), outcome.moved_bytes), (1, size()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_ranges_is_read_as_one_stream() {
    let machine = OneFile::new(&CONTENT);
    let whole =
        |asked: Asked| Reply { whole: true, cut_after: (asked.number == 0).then_some(9_000_000), ..Reply::default() };
    let server = Scripted::start(CONTENT.clone(), whole);
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    let asked = server.take_asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(outcome.moved_bytes <= size() + 9_000_000);
}

/// Of a file that is longer than one request, the first answer shows it: what was sent by then is all it costs.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_ranges_is_known_by_its_first_answer() {
    let content = noise(17 * CHUNK as usize);
    let machine = OneFile::new(&content);
    let server = Scripted::start(content.clone(), |_| Reply { whole: true, ..Reply::default() });
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    let asked = server.take_asked();
    let ends: Vec<_> = asked.iter().map(|asked| (asked.start, asked.end.is_some())).collect();
    assert_eq!((ends, outcome.moved_bytes), (vec![(0, true), (0, false)], content.len() as u64), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_exchanged_on_the_way_is_left_for_another_source() {
    let machine = OneFile::new(&CONTENT);
    let exchanged = |asked: Asked| match asked.number {
        0 => Reply { cut_after: Some(2 * CHUNK), ..Reply::default() },
        _ => Reply { etag: "two", flip: Some(3 * CHUNK), ..Reply::default() },
    };
    let (server, mirror) = (Scripted::start(CONTENT.clone(), exchanged), good(&CONTENT));
    mirror.follow(|_| Reply { pause: Duration::from_millis(1), ..Reply::default() });
    let alone = machine.apply(&[server.url()]).await;
    assert!(alone.failures[0].reason.contains("exchanged while it was fetched"), "{alone:?}");
    let server = Scripted::start(CONTENT.clone(), exchanged);
    let outcome = machine.apply(&[server.url(), mirror.url()]).await;
    machine.must_be_right(&outcome);
}

/// So slow that a second source is worth it.
fn slow(_: Asked) -> Reply {
    Reply { pause: Duration::from_millis(6), ..Reply::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_deliver_at_the_same_time_and_one_may_die() {
    let content = noise(18 * CHUNK as usize);
    let machine = OneFile::new(&content);
    let (one, other) = (Scripted::start(content.clone(), slow), Scripted::start(content.clone(), slow));
    let outcome = machine.apply(&[one.url(), other.url()]).await;
    machine.must_be_right(&outcome);
    assert!(outcome.moved_bytes <= content.len() as u64 + PIECE_CUT_OFF, "{}", outcome.moved_bytes);
    let least = content.len() as u64 / 8;
    assert!(one.sent() > least && other.sent() > least, "{} and {}", one.sent(), other.sent());

    machine.remove();
    let dying = |asked: Asked| match asked.number {
        0 => Reply { cut_after: Some(CHUNK + 9), ..slow(asked) },
        _ => Reply { refuse: Some(404), ..Reply::default() },
    };
    one.take_asked();
    one.follow(dying);
    let outcome = machine.apply(&[one.url(), other.url()]).await;
    machine.must_be_right(&outcome);
    assert!(outcome.moved_bytes <= content.len() as u64 + PIECE_CUT_OFF, "{outcome:?}");
    assert_eq!(machine.heard("LeftOut").len(), 1, "{:#?}", machine.heard("LeftOut"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_is_named_and_costs_one_chunk_where_chunks_are_known() {
    let (machine, good) = (OneFile::new(&CONTENT), good(&CONTENT));
    machine.must_be_right(&machine.apply(&[good.url()]).await);
    machine.remove();
    let lying = Scripted::start(CONTENT.clone(), |_| Reply { flip: Some(CHUNK + 5), ..Reply::default() });
    let outcome = machine.apply(&[lying.url(), good.url()]).await;
    machine.must_be_right(&outcome);
    let told = machine.heard("LeftOut");
    assert!(told.len() == 1 && told[0].contains(&lying.url()) && told[0].contains("blake3"), "{told:#?}");
    assert!(machine.heard("Restarted").is_empty());
    assert!(outcome.moved_bytes <= size() + CHUNK + (1 << 20), "{}", outcome.moved_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_is_found_out_by_the_whole_where_chunks_are_not_known() {
    let (machine, good) = (OneFile::new(&CONTENT), good(&CONTENT));
    let lying = Scripted::start(CONTENT.clone(), |_| Reply { flip: Some(CHUNK + 5), ..Reply::default() });
    let alone = machine.apply(&[lying.url()]).await;
    assert!(alone.failures[0].reason.contains(&lying.url()), "{alone:?}");
    assert!(alone.failures[0].reason.contains("is not the file"), "{alone:?}");
    assert!(!machine.place().exists());
    let machine = OneFile::new(&CONTENT);
    let outcome = machine.apply(&[lying.url(), good.url()]).await;
    machine.must_be_right(&outcome);
    assert_eq!(machine.heard("Restarted").len(), 1);
    assert_eq!(good.take_asked()[0].start, 0, "nothing of the liar's is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_slow_connections_are_used_and_no_byte_comes_twice() {
    let content = noise(30 * CHUNK as usize);
    let machine = OneFile::new(&content);
    let server = Scripted::start(content.clone(), |asked| Reply { pause: Duration::from_millis(3), ..slow(asked) });
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    assert!((2..=4).contains(&machine.most_connections()), "{:#?}", machine.heard("Connections"));
    let open = server.open();
    assert!((2..=4).contains(&open.most) && open.sent_alone < content.len() as u64 / 2, "{open:?}");
    assert!(outcome.moved_bytes <= content.len() as u64 + PIECE_CUT_OFF, "{}", outcome.moved_bytes);
}

/// On a link where two are slower than one, one more is tried once, and not kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_collapses_is_left_to_one_connection() {
    let content = noise(24 * CHUNK as usize);
    let mut machine = OneFile::new(&content);
    machine.connections = 8;
    let pause = Duration::from_millis(3);
    let server = Scripted::start(content.clone(), move |_| Reply { pause, collapses: true, ..Reply::default() });
    let outcome = machine.apply(&[server.url()]).await;
    machine.must_be_right(&outcome);
    let (open, size) = (server.open(), content.len() as u64);
    assert!(open.most <= 2, "{open:?}");
    assert!(open.sent_alone > size / 2, "{open:?} of {size} bytes");
    assert!(outcome.moved_bytes <= size + PIECE_CUT_OFF, "{}", outcome.moved_bytes);
}
