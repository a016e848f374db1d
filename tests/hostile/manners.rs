//! Manners: how often, how fast and how much is asked.

use std::time::{Duration, Instant, SystemTime};

use crate::bench::{Bench, KINDS, Kind, Phase, SIZE, content, honest, is_content, phase};
use crate::hostile::{Answer, Asked};

/// Several files behind one address, each with the same content.
fn many(files: usize, sources: &str) -> Bench {
    let bench = Bench::with(Kind::Http, sources);
    let origin = bench.server.origin();
    let sha256 = larder::digest::Sha256::of(&content());
    let mut text = "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n".to_owned();
    for n in 0..files {
        // Of different content for larder, or it would be fetched once and copied.
        let bytes = numbered(n);
        let sha256 = if n == 0 { sha256 } else { larder::digest::Sha256::of(&bytes) };
        text.push_str(&format!(
            "\n[[artifact]]\nname = \"model-{n}\"\nstore = \"plain\"\nfolder = \"many\"\nsource = \"{origin}/files/{n}.bin\"\n  \
             [[artifact.file]]\n  path = \"{n}.bin\"\n  size = {SIZE}\n  sha256 = \"{sha256}\"\n"
        ));
    }
    bench.machine.write("manifests/lab.toml", &text);
    bench.machine.larder(&["lock", "--offline"]).must_be(0);
    bench.server.now(serve_many);
    bench
}

fn numbered(n: usize) -> Vec<u8> {
    let mut bytes = content().to_vec();
    bytes[0] = bytes[0].wrapping_add(n as u8);
    bytes
}

fn serve_many(asked: &Asked) -> Answer {
    let n = asked.path().trim_start_matches("/files/").trim_end_matches(".bin").parse().unwrap_or(0);
    Answer::file(asked, &numbered(n), &[])
}

fn is_get(asked: &Asked) -> bool {
    asked.method == "GET"
}

/// The moment, as a header says it.
fn http_date(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap();
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[test]
fn what_one_request_learns_holds_for_all_others() {
    // Seven files, four at a time: the first refusal closes the host for everybody.
    let bench = many(7, "parallel = 4\nretries = 5");
    bench.server.now(|asked| match asked.method.as_str() {
        // Asked once for all before the first byte.
        "HEAD" => {
            let mut answer = serve_many(asked);
            if let Some(crate::hostile::Act::Send(head)) = answer.0.first_mut() {
                let text =
                    String::from_utf8_lossy(head).replace("\r\n\r\n", "\r\nRateLimit: \"files\";r=0;t=2\r\n\r\n");
                *head = text.into_bytes();
            }
            answer
        }
        _ => serve_many(asked),
    });
    let begin = Instant::now();
    bench.apply().must_be(0);
    assert!(begin.elapsed() >= Duration::from_secs(2), "the plan's question says: not before two seconds");
    let gets = bench.server.served().iter().filter(|served| is_get(&served.asked)).count();
    assert!(gets >= 7 && bench.server.served().iter().all(|served| served.status < 300), "nobody was refused");
}

#[test]
fn a_host_that_wants_to_be_left_alone_for_an_hour_is_asked_no_more() {
    for header in [("Retry-After", "3600"), ("RateLimit", "\"files\";r=0;t=3600")] {
        let bench = many(6, "parallel = 1\nconnections = 1");
        bench.server.now(move |asked| if is_get(asked) { Answer::new(429, &[header], b"") } else { serve_many(asked) });
        let begin = Instant::now();
        let said = bench.apply();
        assert!(begin.elapsed() < Duration::from_secs(60));
        assert_eq!(said.code, Some(1), "{said}");
        let gets = bench.server.served().iter().filter(|served| is_get(&served.asked)).count();
        assert_eq!(gets, 1, "{header:?}: five more files wait for the same host");
        assert!(said.out.matches("asks to slow down").count() == 6, "{said}");
    }
}

#[test]
fn retry_after_is_waited_for_in_seconds_and_as_a_date() {
    for kind in KINDS {
        for as_date in [false, true] {
            let bench = Bench::locked(kind);
            bench.misbehave(move |asked| {
                let refuses = is_content(kind, asked) && asked.before == 0;
                let date = http_date(SystemTime::now() + Duration::from_secs(2));
                let wait = if as_date { date.as_str() } else { "1" };
                refuses.then(|| Answer::new(503, &[("Retry-After", wait)], b""))
            });
            let begin = Instant::now();
            bench.apply().must_be(0);
            // A date has no fractions: two seconds from now may begin in one.
            assert!(begin.elapsed() >= Duration::from_secs(1), "{kind:?}: {:?}", begin.elapsed());
            assert!(bench.has_it());
            assert_eq!(bench.content_requests(), 2);
        }
    }
}

#[test]
fn a_link_that_ran_out_is_asked_for_again_once_at_once() {
    for kind in KINDS {
        let bench = Bench::locked_with(kind, "retries = 0");
        let port = bench.server.port;
        // Every kind sends for its content elsewhere; the first link is stale.
        bench.misbehave(move |asked| match phase(asked) {
            Phase::Content if !asked.path().starts_with("/v2/") || asked.path().len() > 40 => {
                let link = format!("http://localhost:{port}/elsewhere{}?signature={}", asked.path(), asked.before);
                let size = SIZE.to_string();
                let linked = [("Location", link.as_str()), ("X-Linked-Size", &size)];
                let linked = if kind == Kind::Hub { &linked[..] } else { &linked[..1] };
                Some(Answer::new(302, linked, b""))
            }
            Phase::Elsewhere if asked.target.ends_with("signature=0") => Some(Answer::new(403, &[], b"expired")),
            Phase::Elsewhere => {
                let original = Asked { target: asked.path().replace("/elsewhere", ""), ..asked.clone() };
                let kind = if kind == Kind::Hub { Kind::Http } else { kind };
                Some(honest(kind, port, &original))
            }
            _ => None,
        });
        let said = bench.apply().must_be(0);
        assert!(bench.has_it(), "{said}");
        let stale = bench.server.served().iter().filter(|served| served.status == 403).count();
        let files = if kind == Kind::Ollama { 2 } else { 1 };
        assert_eq!(stale, files, "{kind:?}: without a pause or a retry");
    }
}

#[test]
fn no_more_connections_to_a_host_than_allowed() {
    let bench = many(9, "parallel = 9\nconnections = 2");
    bench.server.now(|asked| serve_many(asked).trickled(60_000, Duration::from_millis(60)));
    bench.apply().must_be(0);
    assert_eq!(bench.server.most_open(), 2, "nine files at the same time share two connections");
}

/// A listener that lets nobody in: the kernel answers no more handshakes than it has room for.
#[test]
fn a_connection_that_is_never_made_is_given_up() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.listen(1).unwrap()
    });
    let address = listener.local_addr().unwrap();
    let patience = Duration::from_millis(300);
    let waiting: Vec<_> = std::iter::repeat_with(|| std::net::TcpStream::connect_timeout(&address, patience))
        .take_while(Result::is_ok)
        .take(64)
        .collect();
    assert!(waiting.len() < 64, "the listener lets everybody in");

    let bench = Bench::with(Kind::Http, "connect-timeout = \"500 ms\"\nretries = 1");
    let manifest = fs_err::read_to_string(bench.machine.path("manifests/lab.toml")).unwrap();
    let manifest = manifest.replace(&bench.server.origin(), &format!("http://{address}"));
    bench.machine.write("manifests/lab.toml", &manifest);
    bench.machine.larder(&["lock", "--offline"]).must_be(0);
    let begin = Instant::now();
    let said = bench.machine.larder(&["plan", "--json"]).must_be(0);
    assert!(said.out.contains("cannot be reached: no connection within the time for it"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// The time that the contents of `files` files take at `rate` bytes per second, less what a pacer lets pass ahead.
fn least_time(files: usize, rate: f64) -> Duration {
    Duration::from_secs_f64(((files * SIZE) as f64 - 200_000.0) / rate)
}

#[test]
fn rates_are_kept_for_all_together_and_for_one_source() {
    let timed = |sources: &str, arguments: &[&str]| {
        let bench = many(3, sources);
        let begin = Instant::now();
        bench.machine.larder(&[&["apply", "--yes"], arguments].concat()).must_be(0);
        begin.elapsed()
    };
    let slow = least_time(3, 400_000.0);
    assert!(timed("max-rate = \"400 kB/s\"", &[]) >= slow);
    assert!(timed("", &["--max-rate", "400kB/s"]) >= slow);
    assert!(timed("max-rate = \"1 GB/s\"", &["--max-rate", "400kB/s"]) >= slow, "the command line counts");
    assert!(timed("max-rates = { \"127.0.0.1\" = \"400 kB/s\" }", &[]) >= slow);
    // A limit of another source is none of ours.
    assert!(
        timed("max-rates = { hub = \"1 kB/s\", ollama = \"1 kB/s\", \"example.org\" = \"1 kB/s\" }", &[]) < slow * 20
    );
}

#[test]
fn the_hubs_rate_holds_for_what_it_sends_for_elsewhere() {
    for (kind, who) in [(Kind::Hub, "hub"), (Kind::Ollama, "ollama"), (Kind::Hub, "\"127.0.0.1\"")] {
        let bench = Bench::locked_with(kind, &format!("max-rates = {{ {who} = \"200 kB/s\" }}"));
        let begin = Instant::now();
        bench.apply().must_be(0);
        assert!(begin.elapsed() >= least_time(1, 200_000.0), "{kind:?}: {:?}", begin.elapsed());
    }
}

#[test]
fn wrong_limits_are_refused_with_their_place() {
    for (line, message) in [
        ("max-rates = { hub = \"fast\" }", "`hub`: \"fast\" is not a rate"),
        ("connections = 0", "`connections` is 0"),
        ("stall-timeout = \"0 s\"", "`stall-timeout` is 0"),
        ("connect-timeout = \"soon\"", "\"soon\" is not a length of time"),
        ("max-download = \"much\"", "\"much\" is not a size"),
    ] {
        let bench = Bench::with(Kind::Http, line);
        let said = bench.machine.larder(&["status"]).must_be(2);
        assert!(said.err.contains(message) && said.err.contains("inventory.toml:"), "{line}: {said}");
    }
}

#[test]
fn the_plan_takes_whole_artifacts_as_far_as_the_limit_goes() {
    let bench = many(5, "");
    let limit = (2 * SIZE + 1000).to_string();
    let plan = bench.machine.larder(&["plan", "--json", "--max-download", &limit]).must_be(0).json();
    insta::assert_snapshot!(plan["download"], @r#"{"limit":661002,"planned":660002,"left_out":["model-2","model-3","model-4"],"left_out_bytes":990003}"#);
    let said = bench.machine.larder(&["plan", "--check", "--max-download", &limit]).must_be(3);
    insta::assert_snapshot!(
        said.out.lines().filter(|line| line.contains("download limit")).collect::<Vec<_>>().join("\n"), @"
    model-2      –  cannot          –  it needs 322.3 KiB, and the download limit of 645.5 KiB has 1000 B left for it
    model-3      –  cannot          –  it needs 322.3 KiB, and the download limit of 645.5 KiB has 1000 B left for it
    model-4      –  cannot          –  it needs 322.3 KiB, and the download limit of 645.5 KiB has 1000 B left for it
    download limit 645.5 KiB: 644.5 KiB of it used, 3 artifacts of 966.8 KiB left out
    ");

    bench.server.now(serve_many);
    let said = bench.machine.larder(&["apply", "--yes", "--max-download", &limit]);
    assert_eq!(said.code, Some(4), "done, but not all: {said}");
    let here =
        |bench: &Bench| (0..5).filter(|n| bench.machine.path(&format!("stores/plain/many/{n}.bin")).exists()).count();
    assert_eq!(here(&bench), 2);
    assert!(bench.server.sent() < 2 * SIZE + 10_000, "{} bytes", bench.server.sent());

    // Nothing at all fits: nothing is asked for, and nothing is half done.
    bench.server.now(serve_many);
    let said = bench.machine.larder(&["apply", "--yes", "--max-download", "1kB"]);
    assert_eq!(said.code, Some(4), "{said}");
    assert!(bench.server.served().iter().all(|served| !is_get(&served.asked)), "{said}");

    // The inventory's limit, and a run that takes the rest.
    bench.machine.larder(&["apply", "--yes"]).must_be(0);
    assert_eq!(here(&bench), 5);
}

#[test]
fn what_is_copied_here_counts_nothing_and_what_would_be_copied_from_the_left_out_is_fetched() {
    let bench = many(1, "max-download = \"1kB\"");
    let manifest = fs_err::read_to_string(bench.machine.path("manifests/lab.toml")).unwrap();
    let (_, model) = manifest.split_once("[[artifact]]").unwrap();
    let twin = model.replace("model-0", "twin").replace("many", "twin");
    bench.machine.write("manifests/lab.toml", &format!("{manifest}\n[[artifact]]{twin}"));
    bench.machine.larder(&["lock", "--offline"]).must_be(0);
    let plan = bench.machine.larder(&["plan", "--json"]).must_be(0).json();
    assert_eq!(plan["download"]["left_out"], serde_json::json!(["model-0", "twin"]), "{plan:#}");

    let roomy = (SIZE + 10).to_string();
    let said = bench.machine.larder(&["apply", "--yes", "--max-download", &roomy]).must_be(0);
    assert!(said.out.contains("copied from other places"), "{said}");
    assert!(bench.server.sent() < SIZE + 5_000);
}

/// Wrong bytes are fetched again, and an endless answer is endless: the limit holds for what really comes.
#[test]
fn no_server_can_make_us_exceed_the_limit() {
    for kind in KINDS {
        let bench = Bench::locked(kind);
        let limit = SIZE + 20_000;
        let endless =
            |_: &Asked| Answer::raw(200, &[("Transfer-Encoding", "chunked")], format!("{:x}\r\n", 1 << 30).as_bytes());
        bench.misbehave(move |asked| {
            is_content(kind, asked).then(|| match asked.before {
                0 => {
                    let mut wrong = content().to_vec();
                    wrong[5] ^= 1;
                    Answer::new(200, &[], &wrong).cut(SIZE - 9, None)
                }
                _ => {
                    let mut answer = endless(asked);
                    answer.0.push(crate::hostile::Act::Send(content().repeat(20)));
                    answer
                }
            })
        });
        let said = bench.machine.larder(&["apply", "--yes", "--json", "--max-download", &limit.to_string()]);
        assert!(!bench.has_it() && said.code != Some(0), "{kind:?}: {said}");
        let moved = said.json()["moved_bytes"].as_u64().unwrap();
        assert!(moved <= limit as u64, "{kind:?}: {moved} of {limit}");
        assert!(said.out.contains("download limit"), "{kind:?}: {said}");
    }
}
