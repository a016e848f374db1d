//! The lab's machines side by side, asked over a real sshd.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use larder::digest::Sha256;

#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod program;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use program::{INVENTORY, Lab, Said};
use sshd::{Sshd, remote_words};

const WEIGHTS: &[u8] = b"trained here, and nowhere else";

fn manifest() -> String {
    let artifact = |name: &str, bytes: &[u8]| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\n\
             [[artifact.file]]\npath = \"{name}.bin\"\nsize = {}\nsha256 = \"{}\"\n",
            bytes.len(),
            Sha256::of(bytes)
        )
    };
    artifact("ours", WEIGHTS) + &artifact("both", b"on both")
}

/// pc1, and pc2, which has the second artifact only.
fn labs() -> (Lab, Lab) {
    let machines = "[machines.pc2]\nprofile = \"all\"\n[machines.pc3]\nprofile = \"all\"\n";
    let inventory = format!("{INVENTORY}\n{machines}");
    let first = Lab::new(&inventory, &manifest());
    let second = Lab::new(&inventory.replace("machine = \"pc1\"", "machine = \"pc2\""), &manifest());
    first.write("home/plain/ours.bin", WEIGHTS);
    first.write("home/plain/both.bin", b"on both");
    second.write("home/plain/both.bin", b"on both");
    (first, second)
}

/// Runs larder on the first machine; ssh leads to the second, and to nobody called pc3.
fn run(first: &Lab, second: &Lab, sshd: &Sshd, arguments: &[&str]) -> Said {
    let script =
        format!("case \"$*\" in *pc3*) echo 'no route to host' >&2; exit 255;; esac\nexec {} \"$@\"\n", sshd.client());
    first.write("ssh.sh", script);
    let way = format!("sh {}", first.path("ssh.sh").display());
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &second.path(""));
    let mut command = first.command(arguments);
    command.args(["--ssh", &way, "--remote-larder", &words]).env("PATH", "/usr/bin:/bin");
    program::said(&mut command, &first.path(""))
}

#[test]
fn what_only_one_machine_has_is_an_alarm_until_another_has_it_too() {
    let Some(sshd) = Sshd::start() else { return };
    let (first, second) = labs();
    let alone = run(&first, &second, &sshd, &["status", "--machines", "pc1,pc2"]);
    assert_eq!(alone.code, 3, "{}{}", alone.out, alone.err);
    assert!(
        alone.out.contains("ours (ours.bin) is only on pc1") && !alone.out.contains("wrong: both"),
        "{}",
        alone.out
    );
    second.write("home/plain/ours.bin", WEIGHTS);
    let shared = run(&first, &second, &sshd, &["status", "--machines", "pc1,pc2", "--json"]);
    assert_eq!(shared.code, 0, "{}{}", shared.out, shared.err);
    let told: serde_json::Value = serde_json::from_str(&shared.out).unwrap();
    let machines: Vec<&str> =
        told["machines"].as_array().unwrap().iter().map(|line| line["machine"].as_str().unwrap()).collect();
    assert_eq!(machines, ["pc1", "pc2"]);
    for copies in told["irreplaceable"].as_array().unwrap() {
        assert_eq!(copies["machines"], serde_json::json!(["pc1", "pc2"]), "{copies}");
    }
}

/// One name is no copy: what was trained on each of two machines is there once.
#[test]
fn two_contents_under_one_name_and_two_folders_of_as_many_files_are_no_copies() {
    let Some(sshd) = Sshd::start() else { return };
    let manifest = |bytes: &[u8]| {
        format!(
            "[[artifact]]\nname = \"ours\"\nstore = \"plain\"\nsource = \"local\"\n\
             [[artifact.file]]\npath = \"ours.bin\"\nsize = {}\nsha256 = \"{}\"\n\
             [[artifact]]\nname = \"loras\"\nstore = \"plain\"\nsource = \"local\"\n\
             match = {{ glob = \"loras/*.bin\", count = 2 }}\n",
            bytes.len(),
            Sha256::of(bytes)
        )
    };
    let (a, b) = (b"trained on pc1".as_slice(), b"trained on pc2".as_slice());
    let (first, second) = labs();
    for (lab, bytes, names) in [(&first, a, ["one", "both"]), (&second, b, ["two", "both"])] {
        lab.write("manifests/lab.toml", manifest(bytes));
        lab.write("home/plain/ours.bin", bytes);
        names.iter().for_each(|name| lab.write(&format!("home/plain/loras/{name}.bin"), name.as_bytes()));
    }
    let told = run(&first, &second, &sshd, &["status", "--machines", "pc1,pc2"]);
    assert_eq!(told.code, 3, "{}{}", told.out, told.err);
    for alarm in [
        "ours (ours.bin) is only on pc1",
        "ours (ours.bin) is only on pc2",
        "loras (loras/one.bin) is only on pc1",
        "loras (loras/two.bin) is only on pc2",
    ] {
        assert!(told.out.contains(alarm), "{alarm}: {}", told.out);
    }
    assert!(!told.out.contains("both.bin"), "{}", told.out);
}

#[test]
fn a_machine_that_does_not_answer_is_told_and_not_counted() {
    let Some(sshd) = Sshd::start() else { return };
    let (first, second) = labs();
    let told = run(&first, &second, &sshd, &["status", "--machines", "pc3,pc2,pc1"]);
    assert_eq!(told.code, 4, "{}{}", told.out, told.err);
    assert!(told.err.contains("pc3 is not counted: pc3 cannot be reached: no route to host"), "{}", told.err);
    assert!(told.out.contains("pc1") && told.out.contains("pc2"), "{}", told.out);
    let nobody = run(&first, &second, &sshd, &["status", "--machines", "pc3"]);
    assert_eq!(nobody.code, 1, "{}{}", nobody.out, nobody.err);
}

/// What another machine sends is not trusted: neither to end, nor to be a report or a lock.
#[test]
fn a_machine_that_answers_without_end_or_with_nonsense_is_told_and_not_counted() {
    let Some(sshd) = Sshd::start() else { return };
    let (first, second) = labs();
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &second.path(""));
    let wrong_lock = r#"printf "HTTP/1.0 200 OK\r\n\r\nversion = none\n""#;
    let script = format!("case \"$*\" in *stdio*) {wrong_lock};; *) exec {words} \"$@\";; esac\n");
    second.write("larder.sh", script);
    let with_wrong_lock = format!("sh {}", second.path("larder.sh").display());
    let ways = [
        ("exec yes #", "pc2 cannot be asked: its answer does not end"),
        ("echo nonsense #", "pc2"),
        (with_wrong_lock.as_str(), "inventory.lock of pc2"),
    ];
    for (remote, why) in ways {
        let mut command = first.command(&["status", "--machines", "pc1,pc2", "--ssh", &sshd.client()]);
        command.args(["--remote-larder", remote]).env("PATH", "/usr/bin:/bin");
        let told = program::said(&mut command, &first.path(""));
        assert_eq!(told.code, 4, "{remote}: {}{}", told.out, told.err);
        assert!(told.err.contains(why) && told.err.contains("pc2 is not counted"), "{remote}: {}", told.err);
    }
}

#[test]
fn two_machines_are_compared() {
    let Some(sshd) = Sshd::start() else { return };
    let (first, second) = labs();
    let different = run(&first, &second, &sshd, &["diff", "pc1", "pc2"]);
    assert_eq!(different.code, 3, "{}{}", different.out, different.err);
    assert!(different.out.contains("ours") && different.out.contains("1 difference"), "{}", different.out);
    second.write("home/plain/ours.bin", WEIGHTS);
    let same = run(&first, &second, &sshd, &["diff", "pc2", "pc1", "--live"]);
    assert_eq!(same.code, 0, "{}{}", same.out, same.err);
    let unknown = run(&first, &second, &sshd, &["diff", "pc1", "pc3"]);
    assert_eq!(unknown.code, 1, "{}{}", unknown.out, unknown.err);
}
