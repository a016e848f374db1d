//! `--json`: one object, nothing else, with the keys that scripts rely on.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::program::Said;
use crate::provider::Provider;

/// Parses what was said; the version and the command must be there.
fn object(command: &str, said: &Said) -> Value {
    let value: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{command}: {error}: {said:?}"));
    assert_eq!((&value["version"], &value["command"]), (&Value::from(1), &Value::from(command)));
    assert!(!said.out.contains('\u{1b}'));
    value
}

/// Every key with the way to it; items of lists are taken together.
fn keys(value: &Value, above: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{above}.{key}");
                into.insert(path.trim_start_matches('.').to_owned());
                keys(value, &path, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{above}[]"), into)),
        _ => {}
    }
}

#[test]
fn every_command_prints_one_object_with_known_keys() {
    let provider = Provider::start();
    let lab = provider.lab();
    let runs: [(&str, &[&str]); 7] = [
        ("lock", &["lock", "--json"]),
        ("list", &["list", "--json"]),
        ("plan", &["plan", "--json"]),
        ("status", &["status", "--json"]),
        ("verify", &["verify", "--quick", "--json"]),
        ("apply", &["apply", "--yes", "--json"]),
        ("demo", &["demo", "--json"]),
    ];
    let mut text = String::new();
    for (command, arguments) in runs {
        let mut seen = BTreeSet::new();
        keys(&object(command, &lab.run(arguments)), "", &mut seen);
        text.push_str(&format!("── {command}\n"));
        seen.into_iter().for_each(|key| text.push_str(&format!("{key}\n")));
    }
    insta::assert_snapshot!(text, @r###"
── lock
added
changed
command
failed
incomplete
removed
version
── list
artifacts
artifacts[].basis
artifacts[].copies
artifacts[].documented
artifacts[].duplicate_of
artifacts[].files
artifacts[].files_complete
artifacts[].folder
artifacts[].gated
artifacts[].kind
artifacts[].license
artifacts[].manifest_pinned
artifacts[].name
artifacts[].note
artifacts[].path
artifacts[].pinned
artifacts[].purpose
artifacts[].section
artifacts[].size
artifacts[].size.bytes
artifacts[].size.certainty
artifacts[].sources
artifacts[].store
artifacts[].tags
artifacts[].title
cloud
command
conditions
outside
outside.artifacts
outside.bytes
outside.copies
outside.exact_bytes
outside.files
outside.pinned
outside.unknown
packages
profiles
profiles[].listed
profiles[].name
profiles[].title
profiles[].total
profiles[].total.artifacts
profiles[].total.bytes
profiles[].total.copies
profiles[].total.exact_bytes
profiles[].total.files
profiles[].total.pinned
profiles[].total.unknown
sections
total
total.artifacts
total.bytes
total.copies
total.exact_bytes
total.files
total.pinned
total.unknown
version
── plan
artifacts
artifacts[].artifact
artifacts[].files
artifacts[].here_bytes
artifacts[].here_files
artifacts[].obstacles
artifacts[].proven_at
artifacts[].size
artifacts[].steps
artifacts[].steps[].because
artifacts[].steps[].bytes
artifacts[].steps[].do
artifacts[].steps[].from
artifacts[].steps[].need
artifacts[].steps[].path
artifacts[].store
bytes_to_move
command
machine
profile
rooms
rooms[].free
rooms[].free_inodes
rooms[].needed
rooms[].new_files
rooms[].path
rooms[].stores
version
── status
artifacts
artifacts[].artifact
artifacts[].faults
artifacts[].faults[].artifact
artifacts[].faults[].detail
artifacts[].faults[].kind
artifacts[].faults[].path
artifacts[].files
artifacts[].first_use
artifacts[].here_bytes
artifacts[].here_files
artifacts[].locked
artifacts[].proven_at
artifacts[].store
command
findings
machine
profile
version
── verify
bytes_read
changing
command
faults
faults[].artifact
faults[].detail
faults[].kind
faults[].path
files
first_use
fresh
interrupted
overdue
overdue_bytes
proven
unread
unread_bytes
version
── apply
command
failures
interrupted
left_out
moved_bytes
placed
published
reused_bytes
version
── demo
command
folder
found
mended
planted
version
"###);
}

#[test]
fn an_error_leaves_standard_output_empty() {
    let provider = Provider::start();
    let lab = provider.lab();
    for arguments in [&["status", "--json", "--machine", "x"][..], &["apply", "--json"]] {
        let said = lab.run(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}");
        assert!(said.err.starts_with("error: "), "{}", said.err);
    }
}
