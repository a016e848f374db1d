//! Each exit code, shown once.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::program::{INVENTORY, Lab};
use crate::provider::{FILES, Provider};

/// A file without any source, and one from a server that nobody runs.
const UNREACHABLE: &str = "[[artifact]]\nname = \"far\"\nstore = \"plain\"\nsource = \"http://127.0.0.1:9/x.bin\"\n\
    file = [{ path = \"x.bin\", size = 3 }]\n";

#[test]
fn zero_when_in_order() {
    let provider = Provider::start();
    let lab = provider.lab();
    assert_eq!(lab.run(&["apply", "--yes"]).code, 0);
    for arguments in [&["status"][..], &["plan", "--check"], &["verify"], &["verify", "--quick"]] {
        let said = lab.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
    }
}

#[test]
fn one_when_it_could_not_be_done() {
    let lab = Lab::new(INVENTORY, UNREACHABLE);
    let said = lab.run(&["serve", "--address", "192.0.2.1:1", "--allow", "192.0.2.0/24"]);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.starts_with("error: ") && said.err.contains("192.0.2.1:1"), "{}", said.err);
}

#[test]
fn two_where_models_would_be_put_on_a_network_for_everybody() {
    let lab = Lab::new(INVENTORY, UNREACHABLE);
    let said = lab.run(&["serve", "--address", "0.0.0.0:0"]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(
        said.err.contains("Everybody who can reach 0.0.0.0:0") && said.err.contains("--token-file"),
        "{}",
        said.err
    );
}

#[test]
fn two_for_wrong_usage() {
    let lab = Lab::new(INVENTORY, UNREACHABLE);
    for arguments in [&["appply"][..], &["plan", "--chekc"], &["apply", "--only"], &[], &["serve", "--address", "here"]]
    {
        let said = lab.run(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}");
        assert!(said.err.contains("Usage") || said.err.contains("--help"), "{arguments:?}: {}", said.err);
    }
}

#[test]
fn three_for_differences() {
    let lab = Provider::start().lab();
    for arguments in
        [&["status"][..], &["plan", "--check", "--offline"], &["verify"], &["verify", "--quick"], &["lock", "--check"]]
    {
        let said = lab.run(arguments);
        assert_eq!(said.code, 3, "{arguments:?}: {}{}", said.out, said.err);
    }
    assert_eq!(lab.run(&["plan", "--offline"]).code, 0, "without --check, a plan is a success");
}

#[test]
fn four_when_some_items_failed() {
    let provider = Provider::start();
    let lab = provider.lab();
    let good = fs_err::read_to_string(lab.path("manifests/lab.toml")).unwrap();
    let missing = "[[artifact.file]]\npath = \"c.bin\"\nsource = \"hf:acme/tiny/c.bin\"\nsize = 3\n";
    lab.write("manifests/lab.toml", format!("{good}{missing}"));
    let said = lab.run(&["apply", "--yes"]);
    assert_eq!(said.code, 4, "{}{}", said.out, said.err);
    assert!(said.out.contains("c.bin"), "{}", said.out);
    let placed = fs_err::read(lab.path("home/plain/a.bin")).unwrap();
    assert_eq!(placed, FILES[0].1, "one failure stops nothing else");
}

#[test]
fn hundred_and_thirty_when_interrupted() {
    // A server that takes the question and never answers: the program waits until it is stopped.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let manifest = UNREACHABLE.replace("127.0.0.1:9", &listener.local_addr().unwrap().to_string());
    let asked = std::thread::spawn(move || {
        // The check before the plan is answered by hanging up, the download is not.
        let (first, _) = listener.accept().unwrap();
        answer_head(first);
        let (second, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&second).read_line(&mut line).unwrap();
        (second, line)
    });
    let lab = Lab::new(INVENTORY, &manifest);
    let running = lab.command(&["apply", "--yes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (held, line) = asked.join().unwrap();
    assert!(line.starts_with("GET /x.bin"), "{line}");
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = running.wait_with_output().unwrap();
    drop(held);
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{out}{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("larder apply continues from here"), "{out}");
}

/// Answers the one question that is asked before anything is fetched.
fn answer_head(stream: std::net::TcpStream) {
    use std::io::Write;
    let mut lines = BufReader::new(&stream).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
    (&stream).write_all(answer.as_bytes()).unwrap();
}
