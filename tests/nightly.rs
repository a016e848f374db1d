//! What a verification does for the night: it remembers, tells when something changes, and stays out of the way.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use larder::digest::Sha256;
use larder::nightly::{Busy, NotifyError, Probe, run_with_input};
use serde_json::Value;

#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;

use program::Lab;

const GOOD: &[u8] = b"the right content";

/// A lab with one file, which is right, and a notify command that runs `script` with a shell.
fn lab(script: &str) -> Lab {
    let notify = ["/bin/sh", "-c", script].map(|word| format!("{word:?}")).join(", ");
    let inventory = format!(
        "machine = \"pc1\"\n\n[stores]\nplain = {{ layout = \"folder\", path = \"~/plain\" }}\n\n[machines.pc1]\n\n\
         [notify]\ncommand = [{notify}]\ntimeout-seconds = 2\n"
    );
    let lab = Lab::new(
        &inventory,
        &format!(
            "[[artifact]]\nname = \"own\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"own.bin\", size = {}, sha256 = \"{}\" }}]\n",
            GOOD.len(),
            Sha256::of(GOOD)
        ),
    );
    lab.write("home/plain/own.bin", GOOD);
    lab
}

/// What the command was told, one object for each time.
fn news(lab: &Lab) -> Vec<Value> {
    let text = fs_err::read_to_string(lab.path("news")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_change_is_told_once_and_its_end_too() {
    let lab = lab("cat >> news; echo >> news");
    assert_eq!(lab.run(&["verify"]).code, 0);
    assert_eq!(news(&lab).len(), 0, "everything is as it should be");
    lab.write("home/plain/own.bin", b"the wrong content");
    for _ in 0..3 {
        assert_eq!(lab.run(&["verify"]).code, 3);
    }
    let told = news(&lab);
    assert_eq!(told.len(), 1, "the fault is news only once: {told:?}");
    assert_eq!((&told[0]["event"], &told[0]["machine"]), (&"faults-changed".into(), &"pc1".into()));
    assert_eq!(told[0]["appeared"][0]["kind"], "replaced");
    assert_eq!(told[0]["appeared"][0]["path"], "own.bin");
    assert_eq!(told[0]["faults"].as_array().unwrap().len(), 1);
    lab.write("home/plain/own.bin", GOOD);
    assert_eq!(lab.run(&["verify", "--quick"]).code, 0);
    assert_eq!(news(&lab).len(), 1, "no content was read, so nobody knows yet");
    assert_eq!(lab.run(&["verify"]).code, 0);
    let told = news(&lab);
    assert_eq!(
        (told.len(), &told[1]["gone"][0]["artifact"], &told[1]["appeared"]),
        (2, &"own".into(), &Value::Array(vec![]))
    );
}

#[test]
fn a_fault_that_stands_is_told_once_however_little_a_run_reads() {
    let lab = lab("cat >> news; echo >> news");
    assert_eq!(lab.run(&["verify"]).code, 0);
    let place = lab.path("home/plain/own.bin");
    let before = fs_err::metadata(&place).unwrap().modified().unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(&place).unwrap();
    file.file().write_all_at(b"X", 3).unwrap();
    file.file().set_modified(before).unwrap();
    for way in [&[][..], &["--quick"], &["--budget", "1s", "--max-age", "7d"], &["--full"], &[], &["--quick"]] {
        let said = lab.run(&[&["verify", "--json"], way].concat());
        let faults = serde_json::from_str::<Value>(&said.out).unwrap()["faults"].clone();
        assert_eq!(
            (said.code, &faults[0]["kind"], faults.as_array().unwrap().len()),
            (3, &"rotted".into(), 1),
            "{way:?}"
        );
    }
    let told = news(&lab);
    assert_eq!((told.len(), &told[0]["appeared"][0]["kind"]), (1, &"rotted".into()), "{told:?}");
    assert_eq!(told[0]["gone"], Value::Array(vec![]));
    // A new time of change alone makes nothing right, and a run that reads nothing does not know.
    file.file().set_modified(before + Duration::from_secs(9)).unwrap();
    lab.run(&["verify", "--quick"]);
    assert_eq!(news(&lab).len(), 1, "it was not read");
    lab.write("home/plain/own.bin", GOOD);
    assert_eq!(lab.run(&["verify"]).code, 0);
    let told = news(&lab);
    assert_eq!(
        (told.len(), &told[1]["gone"][0]["kind"], &told[1]["appeared"]),
        (2, &"rotted".into(), &Value::Array(vec![]))
    );
}

#[test]
fn an_artifact_was_seen_good_only_when_all_of_it_was_read() {
    let contents = [vec![1; 3_000_000], vec![2; 2_900_000]];
    let artifact = |name: &str, content: &[u8]| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"{name}.bin\", size = {}, sha256 = \"{}\" }}]\n",
            content.len(),
            Sha256::of(content)
        )
    };
    let inventory =
        "machine = \"pc1\"\n\n[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n\n[machines.pc1]\n";
    let lab = Lab::new(inventory, &(artifact("a", &contents[0]) + &artifact("b", &contents[1])));
    lab.write("home/plain/a.bin", &contents[0]);
    lab.write("home/plain/b.bin", &contents[1]);
    let good = || {
        let facts = rusqlite::Connection::open(lab.path("state/facts.sqlite")).unwrap();
        let mut rows = facts.prepare("SELECT artifact FROM good ORDER BY artifact").unwrap();
        rows.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(lab.run(&["verify", "--quick"]).code, 0);
    assert_eq!(good(), Vec::<String>::new(), "nothing was read");
    assert_eq!(lab.run(&["verify", "--budget", "1MB", "--max-age", "7d"]).code, 0);
    assert_eq!(good(), ["a"], "the budget ended before the other one");
    let report = lab.run(&["report"]);
    assert!(report.out.contains("full, 2.8 MiB left"), "{}", report.out);
    let row = |name: &str| report.out.lines().find(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
    assert!(row("a ").ends_with("just now") && row("b ").ends_with("never"), "{}", report.out);
    let metrics = lab.run(&["report", "--format", "prometheus"]).out;
    for line in [
        "larder_unread_bytes 2900000",
        "larder_verify_unread_bytes{depth=\"full\"} 2900000",
        "larder_verify_overdue_files{depth=\"full\"} 1",
        "larder_verify_overdue_bytes{depth=\"full\"} 2900000",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(lab.run(&["verify", "--budget", "1MB", "--max-age", "7d"]).code, 0);
    assert_eq!(good(), ["a", "b"]);
    let metrics = lab.run(&["report", "--format", "prometheus"]).out;
    assert!(
        metrics.contains("larder_unread_bytes 0\n") && metrics.contains("larder_oldest_read_timestamp_seconds "),
        "{metrics}"
    );
}

#[test]
fn what_the_notify_command_does_wrong_is_told_and_hides_nothing() {
    for (script, why) in [
        ("echo no route to the mail server >&2; exit 7", "failed (exit status: 7): no route to the mail server"),
        ("sleep 60 & sleep 60", "was ended after 2 s"),
    ] {
        let lab = lab(script);
        lab.write("home/plain/own.bin", b"the wrong content");
        let begin = Instant::now();
        let said = lab.run(&["verify", "--json"]);
        assert!(begin.elapsed() < Duration::from_secs(30), "it waits for ever");
        assert_eq!(said.code, 3, "{said:?}");
        assert!(
            said.err.contains("warning: nobody was told of the change: The notify command /bin/sh"),
            "{}",
            said.err
        );
        assert!(said.err.contains(why), "{}", said.err);
        assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["faults"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_command_that_is_no_command_is_refused_before_the_night() {
    let inventory = "[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n[notify]\ncommand = [\"\"]\ntimeout-seconds = 0\n";
    let lab = Lab::new(inventory, "");
    let said = lab.run(&["verify"]);
    assert_eq!(said.code, 2, "{said:?}");
    for text in ["`command` names no program", "`timeout-seconds` is 0"] {
        assert!(said.err.contains(text), "{}", said.err);
    }
}

#[tokio::test]
async fn commands_need_not_read_and_may_leave_something_running() {
    let run = async |script: &str, input: &[u8]| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        run_with_input(&command, input, Duration::from_secs(30)).await
    };
    let begin = Instant::now();
    run("exit 0", &vec![b'x'; 1 << 20]).await.unwrap();
    run("sleep 20 &", b"{}").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(15), "it waits for what was left behind");
    let missing = run_with_input(&["/no/such/program".to_owned()], b"", Duration::from_secs(5)).await;
    assert!(matches!(missing, Err(NotifyError::Start { .. })), "{missing:?}");
    assert!(matches!(run_with_input(&[], b"", Duration::from_secs(5)).await, Err(NotifyError::Empty)));
}

#[test]
fn a_busy_machine_is_left_alone_and_that_is_no_fault() {
    let lab = lab("exit 1");
    lab.write("home/plain/own.bin", b"the wrong content");
    let said = lab.run(&["verify", "--unless-busy", "test -e busy || exit 1", "--json"]);
    assert_eq!(said.code, 3, "nobody is busy: {said:?}");
    lab.write("busy", b"");
    let said = lab.run(&["verify", "--unless-busy", "test -e busy || exit 1", "--json"]);
    assert_eq!(said.code, 0, "{said:?}");
    let skipped: Value = serde_json::from_str(&said.out).unwrap();
    assert!(skipped["skipped"].as_str().unwrap().contains("says so") && skipped.get("faults").is_none(), "{skipped}");
    let broken = lab.run(&["verify", "--unless-busy", "no-such-command"]);
    assert!(broken.code == 3 && broken.err.contains("nobody knows whether the machine is needed"), "{broken:?}");
    let facts = rusqlite::Connection::open(lab.path("state/facts.sqlite")).unwrap();
    let runs: i64 = facts.query_row("SELECT count(*) FROM run", [], |row| row.get(0)).unwrap();
    assert_eq!(runs, 2, "what was skipped is no run");
}

#[tokio::test]
async fn servers_are_asked_and_waited_for() {
    let app = axum::Router::new()
        .route("/busy", axum::routing::get(async || r#"{"models":[{"in_use":1}]}"#))
        .route("/idle", axum::routing::get(async || r#"{"models":[{"in_use":0}]}"#))
        .route("/full", axum::routing::get(async || axum::http::StatusCode::SERVICE_UNAVAILABLE));
    let counter = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = counter.clone();
    let app = app.route(
        "/soon",
        axum::routing::get(async move || {
            let asked = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            format!(r#"{{"queue_running":[{}]}}"#, if asked < 2 { "1" } else { "" })
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let probe = |path: &str| format!("http://{address}/{path}").parse::<Probe>().unwrap();
    assert!(matches!(probe("busy").ask().await, Busy::Yes(_)));
    assert_eq!(probe("idle").ask().await, Busy::No);
    assert!(matches!(probe("full").ask().await, Busy::Yes(_)));
    assert!(matches!(probe("none").ask().await, Busy::Unknown(_)));
    let pause = Duration::from_millis(1);
    assert_eq!(probe("soon").wait(Duration::from_secs(60), pause).await, Busy::No);
    assert_eq!(counter.load(std::sync::atomic::Ordering::Relaxed), 3, "asked until it is idle, and no more");
    assert!(matches!(probe("busy").wait(Duration::from_millis(5), pause).await, Busy::Yes(_)), "it gives up");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(format!("http://{closed}/").parse::<Probe>().unwrap().ask().await, Busy::No, "nobody is running");
}
