//! Help, one good run and one refusal of every command.

use crate::program::{INVENTORY, Lab};
use crate::provider::{FILES, Provider};

const COMMANDS: [&str; 23] = [
    "status",
    "list",
    "lock",
    "plan",
    "apply",
    "verify",
    "copy",
    "push",
    "diff",
    "report",
    "export",
    "schedule",
    "doctor",
    "adopt",
    "dedupe",
    "prune",
    "repair",
    "sign",
    "smoke",
    "serve",
    "demo",
    "completions",
    "man",
];

const LOCAL: &str =
    "[[artifact]]\nname = \"own\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{ path = \"own.bin\" }]\n";

#[test]
fn every_command_has_help_with_the_exit_codes_on_top() {
    let lab = Lab::new(INVENTORY, LOCAL);
    let all = lab.run(&["--help"]);
    let program = larder::cli::command();
    let known: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(known, COMMANDS, "a command without its line here is not tried");
    assert!(all.out.contains("130  interrupted"), "{}", all.out);
    for command in COMMANDS {
        assert!(all.out.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not listed");
        let help = lab.run(&[command, "--help"]);
        assert_eq!((help.code, help.err.as_str()), (0, ""), "{command}");
        assert!(help.out.contains(&format!("Usage: larder {command}")), "{}", help.out);
        let refused = lab.run(&[command, "--no-such-flag"]);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{command}");
    }
    assert_eq!(lab.run(&["--version"]).out, format!("larder {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_lab_is_locked_provided_and_verified_and_then_nothing_is_left_to_do() {
    let provider = Provider::start();
    let lab = provider.lab();
    let locked = lab.run(&["lock"]);
    assert!(locked.code == 0 && locked.out.contains("added: tiny"), "{locked:?}");
    let plan = lab.run(&["plan"]);
    assert!(plan.out.ends_with("Nothing has been changed. Carry it out with: larder apply\n"), "{}", plan.out);
    assert!(!lab.path("home/plain").exists(), "plan has changed something");
    let applied = lab.run(&["apply", "--yes"]);
    assert!(applied.code == 0 && applied.out.contains("2 files placed"), "{applied:?}");
    for (path, bytes) in FILES {
        assert_eq!(fs_err::read(lab.path("home/plain").join(path)).unwrap(), bytes);
    }
    let verified = lab.run(&["verify"]);
    assert!(verified.out.contains("2 proven, no fault"), "{verified:?}");
    let before = provider.requests();
    let again = lab.run(&["apply", "--yes"]);
    assert!(again.code == 0 && again.out.contains("Everything is in order"), "{again:?}");
    assert_eq!(provider.requests() - before, 0, "a lab in order asks nobody");
}

#[test]
fn apply_changes_nothing_where_nobody_can_say_yes() {
    let provider = Provider::start();
    let lab = provider.lab();
    let said = lab.run(&["apply"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("nothing was changed") && said.err.contains("hint: say yes beforehand"), "{}", said.err);
    assert!(!lab.path("home/plain").exists() && !lab.path("inventory.lock").exists());
}

#[test]
fn offline_asks_nobody_and_reaches_nothing() {
    let provider = Provider::start();
    let lab = provider.lab();
    let said = lab.run(&["apply", "--yes", "--offline"]);
    assert_ne!(said.code, 0, "{}", said.out);
    assert!(said.out.contains("a.bin") && said.out.contains("offline"), "{}", said.out);
    assert_eq!(provider.requests(), 0);
}

#[test]
fn a_plan_offline_says_what_cannot_be_had() {
    let provider = Provider::start();
    let lab = provider.lab();
    let said = lab.run(&["plan", "--offline"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("cannot") && said.out.contains("network use is switched off"), "{}", said.out);
    assert!(!said.out.contains("  move "), "nothing will be moved: {}", said.out);
    let json: serde_json::Value = serde_json::from_str(&lab.run(&["plan", "--offline", "--json"]).out).unwrap();
    assert_eq!((&json["bytes_to_move"], json["artifacts"][0]["steps"].as_array().unwrap().len()), (&0.into(), 0));
    assert_eq!(json["artifacts"][0]["obstacles"].as_array().unwrap().len(), FILES.len());
    assert_eq!(provider.requests(), 0);
    assert_eq!(lab.run(&["apply", "--yes"]).code, 0);
    let said = lab.run(&["plan", "--offline", "--check"]);
    assert_eq!(said.code, 0, "what is here needs nobody: {said:?}");
}

#[test]
fn status_of_some_shows_their_conditions_only() {
    let condition = |name: &str, artifacts: &str| {
        format!(
            "[[condition]]\nname = \"{name}\"\n{artifacts}require = {{ kind = \"text-present\", file = \"~/none\", text = \"x\" }}\n\
             why = \"because of {name}\"\nfix = \"mend {name}\"\n"
        )
    };
    let other = "[[artifact]]\nname = \"other\"\nstore = \"plain\"\nsource = \"local\"\ntags = [\"t\"]\n";
    let all = [condition("of-own", "artifacts = [\"own\"]\n"), condition("of-other", "artifacts = [\"other\"]\n")];
    let manifest = format!("{LOCAL}{other}{}{}", all.concat(), condition("of-all", ""));
    let lab = Lab::new(INVENTORY, &manifest);
    let shown = |arguments: &[&str]| {
        let said = lab.run(&[arguments, &["--json"]].concat()).out;
        ["of-own", "of-other", "of-all"].map(|name| said.contains(name))
    };
    for command in ["status", "report"] {
        assert_eq!(shown(&[command]), [true, true, true], "{command}");
        assert_eq!(shown(&[command, "--only", "other"]), [false, true, false], "{command}");
    }
}

#[test]
fn a_wrong_file_is_named_set_aside_and_replaced() {
    let lab = Provider::start();
    let (provider, lab) = (&lab, lab.lab());
    lab.write("home/plain/a.bin", b"mine, not yours, and longer");
    let status = lab.run(&["status"]);
    assert!(status.code == 3 && status.out.contains("a.bin: it has 27 bytes, 13 are right"), "{}", status.out);
    assert_eq!(lab.run(&["apply", "--yes"]).code, 0, "{}", provider.address);
    assert_eq!(fs_err::read(lab.path("home/plain/a.bin")).unwrap(), FILES[0].1);
    let aside: Vec<_> = walkdir::WalkDir::new(lab.path("home/plain/.larder/replaced"))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| fs_err::read(entry.path()).unwrap())
        .collect();
    assert_eq!(aside, [b"mine, not yours, and longer"]);
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let lab = Lab::new(INVENTORY, LOCAL);
    let (script, page) = (lab.run(&["completions", "bash"]), lab.run(&["man"]));
    for command in COMMANDS {
        assert!(script.out.contains(command) && page.out.contains(&format!("larder\\-{command}")), "{command}");
    }
    assert!(lab.run(&["man", "apply"]).out.contains("larder\\-apply"));
    assert_eq!(lab.run(&["completions", "cobol"]).code, 2);
}

#[test]
fn only_narrows_every_command() {
    let two = format!("{LOCAL}[[artifact]]\nname = \"other\"\nstore = \"plain\"\nsource = \"local\"\ntags = [\"t\"]\n");
    let lab = Lab::new(INVENTORY, &two);
    for command in ["list", "status", "plan", "verify"] {
        let said = lab.run(&[command, "--only", "tag:t", "--offline", "--json"]);
        assert!(!said.out.contains("own.bin"), "{command}: {}", said.out);
    }
}

#[test]
fn quiet_says_nothing_but_the_result() {
    let lab = Provider::start();
    let (_provider, lab) = (&lab, lab.lab());
    let said = lab.run(&["lock", "--quiet"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}
