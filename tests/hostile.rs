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

use bench::{Bench, KINDS, Kind, Model, Phase, SIZE, SMALL, honest, honest_with, is_content, phase};
use hostile::{Act, Answer, Asked, Hostile};

/// A habit: what it does instead of answering a request for the content honestly.
type Habit = fn(Model, &Asked, Answer) -> Answer;

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

/// Lets the server have `habit`, and looks at everything that came of it: with a small model from each kind of source, and
/// with a large one that comes in parts, over four connections at once.
fn try_habit(name: &str, habit: Habit, end: End) {
    let mut all = String::new();
    let benches = KINDS.map(Bench::locked).into_iter().chain([Bench::large("")]);
    for bench in benches {
        let Bench { kind, model, .. } = bench;
        let port = bench.server.port;
        bench.misbehave(move |asked| {
            is_content(kind, asked).then(|| habit(model, asked, honest_with(model, kind, port, asked)))
        });
        let said = bench.apply();
        let has_it = bench.has_it();
        assert_eq!(has_it, end == End::Here, "{name}, {kind:?}, {model:?}: {said}");
        assert_eq!(said.code == Some(0), has_it, "{name}, {kind:?}, {model:?}: {said}");
        let requests = bench.content_requests();
        assert!(requests <= if model == SMALL { 40 } else { 120 }, "{name}, {kind:?}, {model:?}: {requests} requests");
        let size = if model == SMALL { "small" } else { "large" };
        let (told, crossed) = (bench.told(&said), bench.crossed(has_it));
        all.push_str(&format!("── {kind:?}, {size}\n{told}\n({crossed})\n"));

        bench.behave();
        let said = bench.apply();
        assert!(said.code == Some(0) && bench.has_it(), "{name}, {kind:?}, {model:?}, afterwards: {said}");
        if has_it {
            assert_eq!(bench.server.served().len(), 0, "{name}, {kind:?}: what is here is not asked for again");
        }
        let (sent, most) = (bench.content_sent(), model.size + if model == SMALL { 10_000 } else { model.size / 2 });
        assert!(sent < most, "{name}, {kind:?}, {model:?}: {sent} bytes");
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots/hostile" }, {
        insta::assert_snapshot!(name, all);
    });
}

/// The honest answer the first time, but broken off in the middle; `later` from then on.
fn after_a_break(model: Model, asked: &Asked, honest: Answer, later: impl FnOnce(Answer) -> Answer) -> Answer {
    // Of several connections at once, the one at the beginning.
    let is_at_the_beginning = asked.range().is_none_or(|(start, _)| start == 0);
    let is_first = if model == SMALL { asked.before == 0 } else { is_at_the_beginning };
    if is_first { honest.cut(model.size / 2, None) } else { later(honest) }
}

impl Model {
    fn whole(self, headers: &[(&str, &str)]) -> Answer {
        Answer::new(200, headers, &self.content())
    }

    fn rest(self, asked: &Asked) -> (usize, Vec<u8>) {
        let start = asked.range().map_or(0, |(start, _)| start);
        (start, self.content()[start..].to_vec())
    }

    fn wrong(self) -> Vec<u8> {
        let mut bytes = self.content().to_vec();
        bytes[self.size / 3] ^= 1;
        bytes
    }
}

/// A part with this `Content-Range`, whatever was asked.
fn part(range: &str, bytes: &[u8]) -> Answer {
    Answer::new(206, &[("Content-Range", range), ("ETag", "\"one\"")], bytes)
}

const PAGE: &[u8] = b"<!DOCTYPE html><html><title>Log in to the network</title></html>";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nsize 330001\n";

#[rstest]
#[case::half_of_it_each_time("half-each-time", h(|model, _, honest| halved(model, honest)), End::Here)]
#[case::broken_off_and_no_ranges("broken-off-without-ranges", h(|model, _, _| model.whole(&[]).cut(model.size / 2, None)), End::Told)]
#[case::a_whole_answer_to_a_range("200-to-a-range", h(|model, asked, honest| after_a_break(model, asked, honest, |_| model.whole(&[]))), End::Here)]
#[case::more_than_announced("more-than-announced", h(|_, _, mut honest| { honest.0.push(Act::Send(vec![7; 5000])); honest }), End::Here)]
#[case::longer_than_locked("longer-than-locked", h(|model, _, _| Answer::new(200, &[], &[model.content().as_slice(), b"more"].concat())), End::Told)]
#[case::shorter_than_locked("shorter-than-locked", h(|model, _, _| Answer::new(200, &[], &model.content()[..model.size - 10])), End::Told)]
#[case::nothing("nothing", h(|_, _, _| Answer::new(200, &[], b"")), End::Told)]
#[case::wrong_bytes("wrong-bytes", h(|model, _, _| Answer::new(200, &[], &model.wrong())), End::Told)]
#[case::no_length("no-length", h(|model, _, _| Answer::raw(200, &[], &model.content())), End::Here)]
#[case::no_length_and_short("no-length-and-short", h(|model, _, _| Answer::raw(200, &[], &model.content()[..model.size / 2])), End::Told)]
#[case::no_length_and_long("no-length-and-long", h(|model, _, _| Answer::raw(200, &[], &[model.content().as_slice(), &[7; 9000]].concat())), End::Here)]
#[case::chunked("chunked", h(|model, _, _| chunked(&model.content(), true)), End::Here)]
#[case::chunked_without_end("chunked-without-end", h(|model, _, _| chunked(&model.content()[..model.size / 2], false)), End::Told)]
#[case::chunks_that_are_none("nonsense-chunks", h(|_, _, _| Answer::raw(200, &[("Transfer-Encoding", "chunked")], b"zz\r\nabc")), End::Told)]
#[case::junk_behind_the_end("chunked-and-junk", h(|model, _, _| chunked(&[model.content().as_slice(), &[7; 9000]].concat(), true)), End::Here)]
fn bodies(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

/// Only half of what is announced.
fn halved(model: Model, honest: Answer) -> Answer {
    let half = match honest.0.get(1) {
        // The last bytes come as a whole, or it would never end.
        Some(Act::Send(body)) if body.len() > 20_000 => body.len() / 2,
        _ => model.size,
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
#[case::another_start("range-start", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    let (start, bytes) = model.rest(asked);
    part(&format!("bytes {}-{}/{}", start + 20, model.size - 1, model.size), &bytes[20..])
})), End::Told)]
#[case::an_earlier_start("range-earlier-start", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    part(&format!("bytes 1000-{}/{}", model.size - 1, model.size), &model.content()[1000..])
})), End::Here)]
#[case::another_total("range-total", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    let (start, bytes) = model.rest(asked);
    part(&format!("bytes {start}-{}/{}", model.size - 1, model.size + 77), &bytes)
})), End::Told)]
#[case::another_unit("range-unit", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    let (start, bytes) = model.rest(asked);
    part(&format!("items {start}-{}/{}", model.size - 1, model.size), &bytes)
})), End::Told)]
#[case::no_content_range("range-not-said", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    Answer::new(206, &[], &model.rest(asked).1)
})), End::Told)]
#[case::several_parts("range-multipart", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    Answer::new(206, &[("Content-Type", "multipart/byteranges; boundary=x")], &model.rest(asked).1)
})), End::Told)]
#[case::another_tag("changed-tag", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    let (start, bytes) = (model.rest(asked).0, model.wrong());
    let range = format!("bytes {start}-{}/{}", model.size - 1, model.size);
    let other = bytes[start..].iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    Answer::new(206, &[("Content-Range", &range), ("ETag", "\"two\"")], &other)
})), End::Told)]
#[case::another_size("changed-size", h(|model, asked, honest| after_a_break(model, asked, honest, |_| Answer::new(200, &[("ETag", "\"two\"")], &[7; 5000]))), End::Told)]
#[case::a_range_without_being_asked("range-unasked", h(|model, _, _| part(&format!("bytes 0-99/{}", model.size), &model.content()[..100])), End::Told)]
#[case::nothing_satisfies("range-refused", h(|model, asked, honest| after_a_break(model, asked, honest, |_| {
    Answer::new(416, &[("Content-Range", &format!("bytes */{}", model.size))], b"")
})), End::Told)]
#[case::less_at_a_time("range-shorter", shorter, End::Here)]
fn ranges(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

/// A part, but never more of it than this server gives at a time: it may, where it says so.
fn shorter(model: Model, asked: &Asked, honest: Answer) -> Answer {
    let Some((start, end)) = asked.range() else { return honest };
    let end = end.unwrap_or(model.size).min(model.size);
    let at_a_time = if model == SMALL { 70_000 } else { 2 << 20 };
    let last = (start + at_a_time).min(end) - 1;
    part(&format!("bytes {start}-{last}/{}", model.size), &model.content()[start..=last])
}

#[rstest]
#[case::a_page("page", h(|_, _, _| Answer::new(200, &[("Content-Type", "text/html")], PAGE)), End::Told)]
#[case::an_unlabelled_page("page-unlabelled", h(|_, _, _| Answer::raw(200, &[], PAGE)), End::Told)]
#[case::a_pointer("pointer", h(|_, _, _| Answer::new(200, &[("Content-Type", "text/plain")], POINTER)), End::Told)]
#[case::gzip("gzip", h(|model, _, _| Answer::new(200, &[("Content-Encoding", "gzip")], &model.content()[..9000])), End::Told)]
#[case::brotli("br", h(|model, _, _| Answer::new(200, &[("Content-Encoding", "br")], &model.content()[..9000])), End::Told)]
#[case::absurd_length("absurd-length", h(|_, _, _| Answer::raw(200, &[("Content-Length", "9223372036854775807")], b"x")), End::Told)]
#[case::negative_length("negative-length", h(|_, _, _| Answer::raw(200, &[("Content-Length", "-5")], b"x")), End::Told)]
#[case::two_lengths("two-lengths", h(|_, _, _| Answer::raw(200, &[("Content-Length", "5"), ("Content-Length", "7")], b"xxxxx")), End::Told)]
#[case::large_headers("large-headers", h(|model, _, _| Answer::raw(200, &[("X-Large", &"x".repeat(1 << 20))], &model.content())), End::Told)]
#[case::many_headers("many-headers", h(|model, _, _| Answer::raw(200, &[("X-Many", "x"); 2000], &model.content())), End::Told)]
#[case::not_http("not-http", h(|_, _, _| Answer(vec![Act::Send(b"220 mail.lab ESMTP\r\n".to_vec())])), End::Told)]
#[case::no_answer_at_all("closed-at-once", h(|_, _, _| Answer::default()), End::Told)]
#[case::reset_at_once("reset-at-once", h(|_, _, _| Answer(vec![Act::Reset])), End::Told)]
#[case::informal("informal-answers", h(|_, _, mut honest| {
    honest.0.insert(0, Act::Send(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".to_vec()));
    honest
}), End::Here)]
fn substitutes(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[rstest]
#[case::silence("silence", h(|_, _, _| Answer(vec![Act::Silence])), End::Told)]
#[case::silence_in_the_head("silence-in-the-head", h(|_, _, _| {
    Answer(vec![Act::Trickle(b"HTTP/1.1 200 OK\r\n".repeat(100), 1, Duration::from_millis(50))])
}), End::Told)]
#[case::silence_within("silence-within", h(|model, _, _| model.whole(&[]).cut(model.size / 2, Some(Act::Silence))), End::Told)]
#[case::drops("trickle", h(|_, _, honest| honest.trickled(1, Duration::from_millis(30))), End::Told)]
#[case::slow_but_alive("slow-but-alive", h(|model, _, honest| honest.trickled(model.size / 16, Duration::from_millis(100))), End::Here)]
fn slowness(#[case] name: &str, #[case] habit: Habit, #[case] end: End) {
    try_habit(name, habit, end);
}

#[rstest]
#[case::a_circle("redirect-circle", h(|_, asked, _| Answer::redirect(&asked.target)), End::Told)]
#[case::to_nothing("redirect-to-nothing", h(|_, _, _| Answer::new(302, &[], b"")), End::Told)]
#[case::to_no_address("redirect-to-no-address", h(|_, _, _| Answer::redirect("http://[::x/?signature=secret")), End::Told)]
#[case::to_another_scheme("redirect-to-a-file", h(|_, _, _| Answer::redirect("file:///etc/passwd")), End::Told)]
#[case::with_a_password("redirect-with-a-password", h(|_, _, _| Answer::redirect("//user:pass@127.0.0.1/x")), End::Told)]
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

/// The same of a large file over four connections: each answer is reset where every eighth 64 KiB of the file begin, and
/// in eight runs at each of them.
#[test]
fn resets_at_every_64_kib_of_a_large_file_cost_little() {
    const STEP: usize = 64 << 10;
    for shift in 0..8 {
        let bench = Bench::large("retries = 10\nretry-pause = \"1 ms\"");
        let (model, kind, port) = (bench.model, bench.kind, bench.server.port);
        bench.misbehave(move |asked| {
            let start = asked.range().map_or(0, |(start, _)| start) / STEP;
            let steps = 1 + (7 + shift - start % 8) % 8;
            // A reset takes back what is still in the buffers: the pauses let it arrive.
            let cut = |answer: Answer| {
                let mut answer = answer.cut(steps * STEP, None).trickled(STEP, Duration::from_millis(1));
                answer.0.push(Act::Reset);
                answer
            };
            is_content(kind, asked).then(|| cut(honest_with(model, kind, port, asked)))
        });
        bench.apply().must_be(0);
        assert!(bench.has_it());
        assert!(bench.content_sent() < model.size + model.size / 4, "{} bytes", bench.content_sent());
        let least = model.size / (8 * STEP);
        assert!(bench.content_requests() >= least, "{} requests, {least} at least", bench.content_requests());
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

/// The same for a large file over four connections: what came before a refusal stays, and is not asked for again.
#[test]
fn refusals_in_every_phase_of_a_large_file() {
    let mut table = String::new();
    for (which, later) in [(Phase::Check, false), (Phase::Content, false), (Phase::Content, true)] {
        for status in [401, 403, 404, 410, 412, 416, 429, 500, 503] {
            table.push_str(&refused_in_parts(which, later, status));
        }
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "snapshots/hostile" }, {
        insta::assert_snapshot!("refusals-large", table);
    });
}

fn refused_in_parts(which: Phase, later: bool, status: u16) -> String {
    /// What the first answers of all give: enough for a chunk to be whole.
    const FIRST: usize = (4 << 20) + 100_000;
    let bench = Bench::large("");
    let (model, kind, port) = (bench.model, bench.kind, bench.server.port);
    bench.misbehave(move |asked| match (phase(asked) == which, later && asked.before < 4) {
        (true, true) => Some(honest_with(model, kind, port, asked).cut(FIRST, None)),
        (true, false) => Some(Answer::new(status, &[], b"no")),
        _ => None,
    });
    let said = bench.apply();
    let place = if later { "later part" } else { "" };
    let case = format!("{which:?} {place} {status}");
    // Some servers answer GET only: what they say to HEAD is not believed.
    let is_here = which == Phase::Check && bench.has_it();
    assert!(bench.has_it() == is_here && (said.code == Some(0)) == is_here, "{case}: {said}");
    let refusals = bench.server.served().iter().filter(|served| served.status == status).count();
    assert!((1..=24).contains(&refusals), "{case}: {refusals} requests");
    let told = if which == Phase::Check { obstacle(&bench) } else { bench.told(&said) };
    let kept = bench.kept();
    let reason = told.lines().find(|line| line.contains("failed: ")).unwrap_or(&told);
    let words: Vec<&str> = reason.split_whitespace().collect();
    if which == Phase::Content {
        bench.behave();
        bench.apply().must_be(0);
        assert!(bench.has_it(), "{case}, afterwards");
        // At least one of the first answers brought a whole chunk.
        let most = if later { model.size - (4 << 20) + 100_000 } else { model.size + 100_000 };
        assert!(bench.content_sent() <= most, "{case}, afterwards: {} bytes", bench.content_sent());
    }
    format!("{case} → exit {}, {kept}: {}\n", said.code.unwrap(), words.join(" "))
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
        let bench = Bench { kind, model: SMALL, machine, server: back };
        assert!(bench.has_it());
        assert!(bench.content_sent() < SIZE / 2 + 70_000, "{kind:?}: {} bytes again", bench.content_sent());
    }
}
