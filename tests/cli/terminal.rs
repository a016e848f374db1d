//! The program on a terminal: questions, bars, colours. The terminal is one that `script` of util-linux makes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::program::{Lab, Said};
use crate::provider::{FILES, Provider};

#[path = "../support/skip.rs"]
mod skip;

/// Runs the program on a terminal where somebody types `typed`; all that it says is in `out`.
fn on_terminal(lab: &Lab, arguments: &[&str], typed: &str, environment: &[(&str, &str)]) -> Option<Said> {
    let program = lab.command(arguments);
    let words = [program.get_program()].into_iter().chain(program.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut terminal = Command::new("/usr/bin/script");
    terminal.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]).env_clear();
    terminal.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.envs([("TERM", "xterm"), ("SHELL", "/bin/sh")]).envs(environment.iter().copied());
    terminal.current_dir(lab.path("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = match terminal.spawn() {
        Ok(running) => running,
        Err(error) => {
            skip::skipped(&format!("script (util-linux) cannot be started: {error}"));
            return None;
        }
    };
    running.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    Some(Said { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// Whether a text changes colours or weight: `ESC [ … m`.
fn is_coloured(text: &str) -> bool {
    text.split("\u{1b}[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn yes_carries_the_plan_out() {
    for answer in ["y\n", "YES\n"] {
        let provider = Provider::start();
        let lab = provider.lab();
        let Some(said) = on_terminal(&lab, &["apply"], answer, &[]) else { return };
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.contains("Carry this out? [y/N]") && said.out.contains("2 files placed"), "{said:?}");
        for (path, bytes) in FILES {
            assert_eq!(fs_err::read(lab.path("home/plain").join(path)).unwrap(), bytes);
        }
    }
}

#[test]
fn anything_else_changes_nothing_and_is_no_failure() {
    for answer in ["n\n", "\n", "yess\n", ""] {
        let provider = Provider::start();
        let lab = provider.lab();
        let Some(said) = on_terminal(&lab, &["apply"], answer, &[]) else { return };
        assert_eq!(said.code, 0, "{answer:?}: {said:?}");
        assert!(said.out.contains("Carry this out? [y/N]") && !said.out.contains("placed"), "{answer:?}: {said:?}");
        assert!(said.out.contains("Nothing was changed"), "{answer:?}: {said:?}");
        assert!(!lab.path("home/plain").exists() && !lab.path("inventory.lock").exists(), "{answer:?}");
    }
}

#[test]
fn nobody_is_asked_who_said_yes_beforehand() {
    let provider = Provider::start();
    let lab = provider.lab();
    let Some(said) = on_terminal(&lab, &["apply", "--yes"], "", &[]) else { return };
    assert!(said.code == 0 && !said.out.contains("[y/N]"), "{said:?}");
}

#[test]
fn a_repair_that_was_agreed_to_asks_nobody() {
    let provider = Provider::start();
    let lab = provider.lab();
    assert_eq!(lab.run(&["apply", "--yes"]).code, 0);
    lab.write("home/plain/a.bin", b"FIRST content");
    assert_eq!(lab.run(&["verify", "--full"]).code, 3);
    let Some(said) = on_terminal(&lab, &["repair", "--yes"], "", &[]) else { return };
    assert!(said.code == 0 && !said.out.contains("[y/N]"), "{said:?}");
    assert_eq!(fs_err::read(lab.path("home/plain/a.bin")).unwrap(), FILES[0].1);
}

#[test]
fn a_terminal_shows_bars_and_they_are_gone_in_the_end() {
    let provider = Provider::start();
    let lab = provider.lab();
    let Some(said) = on_terminal(&lab, &["apply", "--yes"], "", &[]) else { return };
    assert!(said.out.contains(" total ") && said.out.contains("proven"), "no bar: {said:?}");
    assert!(!said.out.contains("done: a.bin"), "lines are for logs: {said:?}");
    // The last line with a bar on it is erased before the result is said.
    let (bars, result) = said.out.rsplit_once("proven").unwrap();
    assert!(result.contains("\u{1b}[2K") && result.contains("2 files placed"), "{result:?}");
    assert!(bars.contains("\u{1b}[2K"), "one line is drawn again and again: {said:?}");
    for plain in [&["--quiet"][..], &["--progress", "none"], &["--progress", "lines"]] {
        let lab = provider.lab();
        let said = on_terminal(&lab, &[&["apply", "--yes"], plain].concat(), "", &[]).unwrap();
        assert!(said.code == 0 && !said.out.contains('\u{1b}'), "{plain:?}: {said:?}");
    }
}

#[test]
fn no_color_is_obeyed() {
    let provider = Provider::start();
    let lab = provider.lab();
    let Some(coloured) = on_terminal(&lab, &["--help"], "", &[]) else { return };
    assert!(coloured.code == 0 && is_coloured(&coloured.out), "{coloured:?}");
    let plain = on_terminal(&lab, &["--help"], "", &[("NO_COLOR", "1")]).unwrap();
    assert!(plain.out.contains("Usage: larder") && !plain.out.contains('\u{1b}'), "{plain:?}");
    let applied = on_terminal(&lab, &["apply", "--yes"], "", &[("NO_COLOR", "1")]).unwrap();
    assert!(applied.out.contains(" total ") && !is_coloured(&applied.out), "{applied:?}");
    let wrong = on_terminal(&lab, &["appply"], "", &[("NO_COLOR", "1")]).unwrap();
    assert!(wrong.code == 2 && !wrong.out.contains('\u{1b}'), "{wrong:?}");
}
