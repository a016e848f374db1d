//! Progress as events: what a program that listens is told.

use serde_json::Value;

use crate::bench::{Bench, KINDS, Kind, SIZE, content, honest, is_content};
use crate::hostile::Answer;
use crate::machine::Said;

/// The lines of standard error that are events, in order.
fn events(said: &Said) -> Vec<Value> {
    let lines = said.err.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of<'a>(events: &'a [Value], event: &str) -> Vec<&'a Value> {
    events.iter().filter(|told| told["event"] == event).collect()
}

/// The model's own item.
fn model<'a>(events: &[&'a Value]) -> Vec<&'a Value> {
    let is_model = |told: &&&Value| told["total"] == SIZE || told["bytes"] == SIZE;
    events.iter().filter(is_model).copied().collect()
}

#[test]
fn a_listener_is_told_of_every_step() {
    for kind in KINDS {
        let bench = Bench::locked(kind);
        let port = bench.server.port;
        bench.misbehave(move |asked| {
            (is_content(kind, asked) && asked.before == 0).then(|| honest(kind, port, asked).cut(SIZE / 2, None))
        });
        let said = bench.machine.larder(&["apply", "--yes", "--json"]).must_be(0);
        assert_eq!(said.json()["command"], "apply", "standard output is one object");
        let events = events(&said);
        assert!(events.iter().all(|told| told["version"] == 1));
        let started = of(&events, "started");
        assert_eq!(model(&started).len(), 1, "{kind:?}: {events:#?}");
        assert_eq!(model(&started)[0]["resumed"], 0);
        let item = &model(&started)[0]["item"];

        let here: Vec<u64> =
            model(&of(&events, "advanced")).iter().map(|told| told["here"].as_u64().unwrap()).collect();
        assert!(here.is_sorted() && here.last() == Some(&(SIZE as u64)), "{kind:?}: {here:?}");
        let retrying = of(&events, "retrying");
        assert_eq!((retrying.len(), &retrying[0]["item"], &retrying[0]["retries"]), (1, item, &Value::from(1)));
        assert_eq!(model(&of(&events, "proven"))[0]["item"], *item, "{kind:?}");
        let finished = of(&events, "finished");
        assert!(finished.iter().any(|told| told["item"] == *item));
        let all = &finished.last().unwrap()["all"];
        assert_eq!((&all["moved"], &all["to_move"]), (&all["to_move"], &all["proven"]), "{kind:?}: {all}");
        assert_eq!((&all["retries"], &all["failed"]), (&Value::from(1), &Value::from(0)));

        // Proven before it is called finished.
        let position = |event: &str| events.iter().position(|told| told["event"] == event && told["item"] == *item);
        assert!(position("started") < position("retrying") && position("retrying") < position("proven"));
        assert!(position("proven") < position("finished"));
    }
}

#[test]
fn advances_are_told_a_few_times_a_second_only() {
    let bench = Bench::locked(Kind::Http);
    bench.misbehave(|asked| {
        is_content(Kind::Http, asked)
            .then(|| Answer::file(asked, &content(), &[]).trickled(1000, std::time::Duration::from_millis(1)))
    });
    let begin = std::time::Instant::now();
    let said = bench.machine.larder(&["apply", "--yes", "--progress", "json"]).must_be(0);
    let most = begin.elapsed().as_millis() / 200 + 2;
    let told = of(&events(&said), "advanced").len();
    assert!((1..=most as usize).contains(&told), "{told} events, {most} are due");
    assert!(said.out.contains("1 file placed"), "{said}");
}

#[test]
fn failures_are_events_too() {
    let bench = Bench::locked(Kind::Http);
    bench.misbehave(|asked| is_content(Kind::Http, asked).then(|| Answer::new(404, &[], b"")));
    let said = bench.machine.larder(&["apply", "--yes", "--progress", "json"]).must_be(1);
    let events = events(&said);
    let failed = of(&events, "failed");
    assert_eq!((failed.len(), &failed[0]["all"]["failed"]), (1, &Value::from(1)), "{said}");
    assert!(failed[0]["reason"].as_str().unwrap().contains("does not exist"), "{said}");
}

#[test]
fn nothing_is_told_where_nobody_wants_to_know() {
    for arguments in [&["--progress", "none"][..], &["--quiet"]] {
        let bench = Bench::locked(Kind::Http);
        let said = bench.machine.larder(&[&["apply", "--yes"][..], arguments].concat()).must_be(0);
        assert_eq!(said.err, "", "{said}");
    }
}
