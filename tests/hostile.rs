//! Servers with bad habits, one by one: what the user is told, what lies on the disk, what crossed the wire.
//!
//! Every habit is tried on each kind of source. Afterwards the server behaves, and the next run must finish
//! the file: the worst that a server can do is to cost time.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use rstest::rstest;

#[path = "support/bench.rs"]
mod bench;
#[path = "support/exfat.rs"]
mod exfat;
#[path = "support/hostile.rs"]
mod hostile;
#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;

#[path = "hostile/listings.rs"]
mod listings;
#[path = "hostile/manners.rs"]
mod manners;
#[path = "hostile/progress.rs"]
mod progress;
#[path = "hostile/proxies.rs"]
mod proxies;
#[path = "support/skip.rs"]
mod skip;
#[path = "hostile/tls.rs"]
mod tls;
#[path = "hostile/tokens.rs"]
mod tokens;

use bench::{Bench, KINDS, Kind, Phase, SIZE, content, honest, is_content, phase};
use hostile::{Act, Answer, Asked, Hostile};

/// A habit: what it does instead of answering a request for the content honestly.
type Habit = fn(&Asked, Answer) -> Answer;

/// Tells the compiler what a closure is.
const fn h(habit: Habit) -> Habit {
    habit
}

/// Bytes that two whole transfers and everything said around them stay below.
const TWICE: usize = 2 * SIZE + 50_000;

/// How it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The file is there, and right.
    Here,
    /// It is not, and that was said.
    Told,
}

/// Lets the server have `habit`, and looks at everything that came of it.
fn try_habit(name: &str, habit: Habit, end: End) {
    let mut all = String::new();
    for kind in KINDS {
        let bench = Bench::locked(kind);
        let port = bench.server.port;
        bench.misbehave(move |asked| is_content(kind, asked).then(|| habit(asked, honest(kind, port, asked))));
        let said = bench.apply();
        let has_it = bench.has_it();
        assert_eq!(has_it, end == End::Here, "{name}, {kind:?}: {said}");
        assert_eq!(said.code == Some(0), has_it, "{name}, {kind:?}: {said}");
        assert!(bench.content_requests() <= 40, "{name}, {kind:?}: {} requests", bench.content_requests());
        all.push_str(&format!("── {kind:?}\n{}\n", bench.told(&said)));

        bench.behave();
        let said = bench.apply();
        assert!(said.code == Some(0) && bench.has_it(), "{name}, {kind:?}, afterwards: {said}");
        if has_it {
            assert_eq!(bench.server.served().len(), 0, "{name}, {kind:?}: what is here is not asked for again");
        }
        assert!(bench.content_sent() < SIZE + 10_000, "{name}, {kind:?}: {} bytes", bench.content_sent());
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots/hostile" }, {
        insta::assert_snapshot!(name, all);
    });
}

/// The honest answer the first time, but broken off in the middle; `later` from then on.
fn after_a_break(asked: &Asked, honest: Answer, later: impl FnOnce(Answer) -> Answer) -> Answer {
    if asked.before == 0 { honest.cut(SIZE / 2, None) } else { later(honest) }
}

fn whole(headers: &[(&str, &str)]) -> Answer {
    Answer::new(200, headers, &content())
}

/// A part with this `Content-Range`, whatever was asked.
fn part(range: &str, bytes: &[u8]) -> Answer {
    Answer::new(206, &[("Content-Range", range), ("ETag", "\"one\"")], bytes)
}

fn rest(asked: &Asked) -> (usize, Vec<u8>) {
    let start = asked.range().map_or(0, |(start, _)| start);
    (start, content()[start..].to_vec())
}

fn wrong() -> Vec<u8> {
    let mut bytes = content().to_vec();
    bytes[SIZE / 3] ^= 1;
    bytes
}

const PAGE: &[u8] = b"<!DOCTYPE html><html><title>Log in to the network</title></html>";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nsize 330001\n";

#[rstest]
#[case::half_of_it_each_time("half-each-time", h(|_, honest| halved(honest)), End::Here)]
#[case::broken_off_and_no_ranges("broken-off-without-ranges", h(|_, _| whole(&[]).cut(SIZE / 2, None)), End::Told)]
#[case::a_whole_answer_to_a_range("200-to-a-range", h(|asked, honest| after_a_break(asked, honest, |_| whole(&[]))), End::Here)]
#[case::more_than_announced("more-than-announced", h(|_, mut honest| { honest.0.push(Act::Send(vec![7; 5000])); honest }), End::Here)]
#[case::longer_than_locked("longer-than-locked", h(|_, _| Answer::new(200, &[], &[content().as_slice(), b"more"].concat())), End::Told)]
#[case::shorter_than_locked("shorter-than-locked", h(|_, _| Answer::new(200, &[], &content()[..SIZE - 10])), End::Told)]
#[case::nothing("nothing", h(|_, _| Answer::new(200, &[], b"")), End::Told)]
#[case::wrong_bytes("wrong-bytes", h(|_, _| Answer::new(200, &[], &wrong())), End::Told)]
#[case::no_length("no-length", h(|_, _| Answer::raw(200, &[], &content())), End::Here)]
#[case::no_length_and_short("no-length-and-short", h(|_, _| Answer::raw(200, &[], &content()[..SIZE / 2])), End::Told)]
#[case::no_length_and_long("no-length-and-long", h(|_, _| Answer::raw(200, &[], &[content().as_slice(), &[7; 9000]].concat())), End::Told)]
#[case::chunked("chunked", h(|_, _| chunked(&content(), true)), End::Here)]
#[case::chunked_without_end("chunked-without-end", h(|_, _| chunked(&content()[..SIZE / 2], false)), End::Told)]
#[case::chunks_that_are_none("nonsense-chunks", h(|_, _| Answer::raw(200, &[("Transfer-Encoding", "chunked")], b"zz\r\nabc")), End::Told)]
fn bodies(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

/// Only half of what is announced.
fn halved(honest: Answer) -> Answer {
    let half = match honest.0.get(1) {
        // The last bytes come as a whole, or it would never end.
        Some(Act::Send(body)) if body.len() > 20_000 => body.len() / 2,
        _ => SIZE,
    };
    honest.cut(half, None)
}

fn chunked(bytes: &[u8], ends: bool) -> Answer {
    let mut body = Vec::new();
    for chunk in bytes.chunks(50_000) {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    if ends {
        body.extend_from_slice(b"0\r\n\r\n");
    }
    Answer::raw(200, &[("Transfer-Encoding", "chunked")], &body)
}

#[rstest]
#[case::another_start("range-start", h(|asked, honest| after_a_break(asked, honest, |_| {
    let (start, bytes) = rest(asked);
    part(&format!("bytes {}-{}/{SIZE}", start + 20, SIZE - 1), &bytes[20..])
})), End::Told)]
#[case::an_earlier_start("range-earlier-start", h(|asked, honest| after_a_break(asked, honest, |_| {
    part(&format!("bytes 1000-{}/{SIZE}", SIZE - 1), &content()[1000..])
})), End::Here)]
#[case::another_total("range-total", h(|asked, honest| after_a_break(asked, honest, |_| {
    let (start, bytes) = rest(asked);
    part(&format!("bytes {start}-{}/{}", SIZE - 1, SIZE + 77), &bytes)
})), End::Told)]
#[case::another_unit("range-unit", h(|asked, honest| after_a_break(asked, honest, |_| {
    let (start, bytes) = rest(asked);
    part(&format!("items {start}-{}/{SIZE}", SIZE - 1), &bytes)
})), End::Told)]
#[case::no_content_range("range-not-said", h(|asked, honest| after_a_break(asked, honest, |_| {
    Answer::new(206, &[], &rest(asked).1)
})), End::Told)]
#[case::several_parts("range-multipart", h(|asked, honest| after_a_break(asked, honest, |_| {
    Answer::new(206, &[("Content-Type", "multipart/byteranges; boundary=x")], &rest(asked).1)
})), End::Told)]
#[case::another_tag("changed-tag", h(|asked, honest| after_a_break(asked, honest, |_| {
    let (start, bytes) = (rest(asked).0, wrong());
    let range = format!("bytes {start}-{}/{SIZE}", SIZE - 1);
    let other = bytes[start..].iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    Answer::new(206, &[("Content-Range", &range), ("ETag", "\"two\"")], &other)
})), End::Told)]
#[case::another_size("changed-size", h(|asked, honest| after_a_break(asked, honest, |_| Answer::new(200, &[("ETag", "\"two\"")], &[7; 5000]))), End::Told)]
#[case::a_range_without_being_asked("range-unasked", h(|_, _| part(&format!("bytes 0-99/{SIZE}"), &content()[..100])), End::Told)]
#[case::nothing_satisfies("range-refused", h(|asked, honest| after_a_break(asked, honest, |_| {
    Answer::new(416, &[("Content-Range", &format!("bytes */{SIZE}"))], b"")
})), End::Told)]
fn ranges(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[rstest]
#[case::a_page("page", h(|_, _| Answer::new(200, &[("Content-Type", "text/html")], PAGE)), End::Told)]
#[case::an_unlabelled_page("page-unlabelled", h(|_, _| Answer::raw(200, &[], PAGE)), End::Told)]
#[case::a_pointer("pointer", h(|_, _| Answer::new(200, &[("Content-Type", "text/plain")], POINTER)), End::Told)]
#[case::gzip("gzip", h(|_, _| Answer::new(200, &[("Content-Encoding", "gzip")], &content()[..9000])), End::Told)]
#[case::brotli("br", h(|_, _| Answer::new(200, &[("Content-Encoding", "br")], &content()[..9000])), End::Told)]
#[case::absurd_length("absurd-length", h(|_, _| Answer::raw(200, &[("Content-Length", "9223372036854775807")], b"x")), End::Told)]
#[case::negative_length("negative-length", h(|_, _| Answer::raw(200, &[("Content-Length", "-5")], b"x")), End::Told)]
#[case::two_lengths("two-lengths", h(|_, _| Answer::raw(200, &[("Content-Length", "5"), ("Content-Length", "7")], b"xxxxx")), End::Told)]
#[case::large_headers("large-headers", h(|_, _| Answer::raw(200, &[("X-Large", &"x".repeat(1 << 20))], &content())), End::Told)]
#[case::many_headers("many-headers", h(|_, _| Answer::raw(200, &[("X-Many", "x"); 2000], &content())), End::Told)]
#[case::not_http("not-http", h(|_, _| Answer(vec![Act::Send(b"220 mail.lab ESMTP\r\n".to_vec())])), End::Told)]
#[case::no_answer_at_all("closed-at-once", h(|_, _| Answer::default()), End::Told)]
#[case::reset_at_once("reset-at-once", h(|_, _| Answer(vec![Act::Reset])), End::Told)]
#[case::informal("informal-answers", h(|_, mut honest| {
    honest.0.insert(0, Act::Send(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".to_vec()));
    honest
}), End::Here)]
fn substitutes(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[rstest]
#[case::silence("silence", h(|_, _| Answer(vec![Act::Silence])), End::Told)]
#[case::silence_in_the_head("silence-in-the-head", h(|_, _| {
    Answer(vec![Act::Trickle(b"HTTP/1.1 200 OK\r\n".repeat(100), 1, Duration::from_millis(50))])
}), End::Told)]
#[case::silence_within("silence-within", h(|_, _| whole(&[]).cut(SIZE / 2, Some(Act::Silence))), End::Told)]
#[case::drops("trickle", h(|_, honest| honest.trickled(1, Duration::from_millis(30))), End::Told)]
#[case::slow_but_alive("slow-but-alive", h(|_, honest| honest.trickled(20_000, Duration::from_millis(100))), End::Here)]
fn slowness(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[rstest]
#[case::a_circle("redirect-circle", h(|asked, _| Answer::redirect(&asked.target)), End::Told)]
#[case::to_nothing("redirect-to-nothing", h(|_, _| Answer::new(302, &[], b"")), End::Told)]
#[case::to_no_address("redirect-to-no-address", h(|_, _| Answer::redirect("http://[::x/?signature=secret")), End::Told)]
#[case::to_another_scheme("redirect-to-a-file", h(|_, _| Answer::redirect("file:///etc/passwd")), End::Told)]
#[case::with_a_password("redirect-with-a-password", h(|_, _| Answer::redirect("//user:pass@127.0.0.1/x")), End::Told)]
fn redirects(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[test]
fn redirects_without_end_are_followed_ten_times() {
    for kind in KINDS {
        let bench = Bench::locked(kind);
        bench.misbehave(|asked| {
            let is_on_the_way = phase(asked) == Phase::Content || asked.path().contains("/next");
            is_on_the_way.then(|| Answer::redirect(&format!("{}/next", asked.path())))
        });
        let said = bench.apply();
        assert!(!bench.has_it() && said.out.contains("it redirects more than 10 times"), "{said}");
        assert!(bench.server.served().len() <= 26, "{kind:?}: {} requests", bench.server.served().len());
    }
}

/// The connection is reset after each 64 KiB in turn: what arrived counts, and the end is right.
#[test]
fn resets_at_every_64_kib_cost_little() {
    for kind in KINDS {
        for boundary in 0..=(SIZE >> 16) {
            let bench = Bench::locked(kind);
            let port = bench.server.port;
            bench.misbehave(move |asked| {
                let first = is_content(kind, asked) && asked.before == 0;
                first.then(|| honest(kind, port, asked).cut(boundary << 16, Some(Act::Reset)))
            });
            bench.apply().must_be(0);
            assert!(bench.has_it());
            assert!(bench.content_sent() < TWICE, "{kind:?}, {boundary}: {} bytes", bench.content_sent());
            assert!(bench.content_requests() <= 3, "{kind:?}, {boundary}: {} requests", bench.content_requests());
        }
    }
}

/// A refusal in each phase: who is told what, after how many requests.
#[test]
fn refusals_in_every_phase() {
    let mut table = String::new();
    for kind in KINDS {
        for phase in [Phase::Listing, Phase::Check, Phase::Content, Phase::Elsewhere] {
            if (kind, phase) == (Kind::Http, Phase::Listing) || (phase == Phase::Elsewhere && kind != Kind::Hub) {
                continue;
            }
            for later in [false, true] {
                if later && !is_content_phase(kind, phase) {
                    continue;
                }
                for status in [401, 403, 404, 410, 412, 416, 429, 500, 503] {
                    table.push_str(&refused(kind, phase, later, status));
                }
            }
        }
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots/hostile" }, {
        insta::assert_snapshot!("refusals", table);
    });
}

fn is_content_phase(kind: Kind, phase: Phase) -> bool {
    phase == if kind == Kind::Hub { Phase::Elsewhere } else { Phase::Content }
}

/// One line: where, what, exit code, requests, and what the user is told.
fn refused(kind: Kind, which: Phase, later: bool, status: u16) -> String {
    let bench = if which == Phase::Listing { Bench::new(kind) } else { Bench::locked(kind) };
    let port = bench.server.port;
    bench.misbehave(move |asked| {
        let hit = if is_content_phase(kind, which) { is_content(kind, asked) } else { phase(asked) == which };
        match (hit, later && asked.before == 0) {
            (true, true) => Some(honest(kind, port, asked).cut(SIZE / 2, None)),
            (true, false) => Some(Answer::new(status, &[], b"no")),
            _ => None,
        }
    });
    let said = if which == Phase::Listing { bench.machine.larder(&["lock"]) } else { bench.apply() };
    let place = if later { "later part" } else { "" };
    let case = format!("{kind:?} {which:?} {place} {status}");
    // Some servers answer GET only: what they say to HEAD is not believed.
    let is_here = which == Phase::Check && bench.has_it();
    assert!(bench.has_it() == is_here && (said.code == Some(0)) == is_here, "{case}: {said}");
    let refusals = bench.server.served().iter().filter(|served| served.status == status).count();
    assert!((1..=6).contains(&refusals), "{case}: {refusals} requests");
    let told = if which == Phase::Check { obstacle(&bench) } else { bench.told(&said) };
    let reason = told.lines().find(|line| line.contains("failed: ")).unwrap_or(&told);
    let words: Vec<&str> = reason.split_whitespace().collect();
    format!("{case} → exit {}, {refusals} asked: {}\n", said.code.unwrap(), words.join(" "))
}

/// Why the plan says that it cannot be had.
fn obstacle(bench: &Bench) -> String {
    let plan = bench.machine.larder(&["plan", "--json"]).must_be(0).json();
    let reason = plan["artifacts"][0]["obstacles"][0]["reason"].as_str().unwrap_or("it is here");
    bench.normal(reason)
}

#[test]
fn a_server_that_was_away_is_asked_again() {
    for kind in KINDS {
        let bench = Bench::locked_with(kind, "retries = 30\nretry-pause = \"200 ms\"");
        let Bench { machine, server, .. } = &bench;
        let port = server.port;
        // It goes away in the middle of the content, and comes back while larder tries again.
        bench.misbehave(move |asked| {
            (is_content(kind, asked) && asked.before == 0)
                .then(|| honest(kind, port, asked).cut(SIZE / 2, Some(Act::Silence)))
        });
        let child = machine.command(&["apply", "--yes"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        while bench.content_requests() == 0 || bench.content_sent() < SIZE / 2 {
            std::thread::yield_now();
        }
        let Bench { machine, server, .. } = bench;
        drop(server);
        let back = Hostile::start_at(port, move |asked| honest(kind, port, asked));
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&output.stdout));
        let bench = Bench { kind, machine, server: back };
        assert!(bench.has_it());
        assert!(bench.content_sent() < SIZE / 2 + 70_000, "{kind:?}: {} bytes again", bench.content_sent());
    }
}
