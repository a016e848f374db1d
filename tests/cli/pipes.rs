//! What is piped has no colours, and a reader that goes away is no accident.

use std::process::Stdio;

use crate::program::{INVENTORY, Lab};
use crate::provider::Provider;

#[test]
fn piped_output_has_no_escapes() {
    let provider = Provider::start();
    let lab = provider.lab();
    for arguments in [&["list"][..], &["lock"], &["plan"], &["apply", "--yes"], &["verify"], &["nonsense"], &["--help"]]
    {
        for colour in [None, Some("NO_COLOR"), Some("CLICOLOR")] {
            let mut command = lab.command(arguments);
            colour.iter().for_each(|name| _ = command.env(name, "1"));
            let said = crate::program::said(&mut command, &lab.path(""));
            assert!(!said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'), "{arguments:?} {colour:?}: {said:?}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_accident() {
    // More than a pipe holds, so that the program still writes when nobody listens any more.
    let artifact =
        |n| format!("[[artifact]]\nname = \"a{n}\"\ntitle = \"Number {n}\"\nstore = \"plain\"\nsource = \"local\"\n");
    let lab = Lab::new(INVENTORY, &(0..2000).map(artifact).collect::<String>());
    for arguments in [&["list"][..], &["list", "--json"], &["status"], &["completions", "zsh"], &["man"], &["--help"]] {
        let mut running = lab.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(running.stdout.take());
        let output = running.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code == 0 || code == 3), "{arguments:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("Broken pipe"), "{arguments:?}: {err}");
    }
}
