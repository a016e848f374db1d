//! Whose word the lock and the manifests have: real keys of ssh-keygen, and everything that is not signed as it should be.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::digest::Sha256;

#[path = "support/bucket_lab.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod bucket_lab;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod program;
#[path = "support/s3s.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod s3s;

use program::{INVENTORY, Lab, Said};
use s3s::S3;

const CONTENT: &[u8] = b"weights that somebody vouched for";

/// A new key in a folder of its own, with this comment.
fn key(lab: &Lab, name: &str) -> String {
    lab.write("keys/.keep", b"");
    let path = lab.path(&format!("keys/{name}"));
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path).status();
    assert!(made.unwrap().success());
    std::fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

fn manifest(lab: &Path) -> String {
    format!(
        "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"{}\"\n\
         [[artifact.file]]\npath = \"tiny.bin\"\nsize = {}\nsha256 = \"{}\"\n",
        url::Url::from_directory_path(lab.join("source")).unwrap(),
        CONTENT.len(),
        Sha256::of(CONTENT)
    )
}

/// A lab that takes nothing but what `trusted` signed, and can have everything from a folder.
fn lab(trusted: &[&str]) -> Lab {
    let lab = Lab::new(INVENTORY, "");
    lab.write("source/tiny.bin", CONTENT);
    lab.write("manifests/lab.toml", manifest(&lab.path("")));
    let keys: Vec<String> = trusted.iter().map(|name| format!("{:?}", key(&lab, name))).collect();
    lab.write(
        "inventory.toml",
        format!("{INVENTORY}\n[trust]\nrequire-signature = true\nkeys = [{}]\n", keys.join(", ")),
    );
    lab
}

fn run(lab: &Lab, arguments: &[&str]) -> Said {
    let mut command = lab.command(arguments);
    program::said(command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()), &lab.path(""))
}

fn sign(lab: &Lab, name: &str) -> Said {
    run(lab, &["sign", "--key", &format!("keys/{name}")])
}

fn has_it(lab: &Lab) -> bool {
    lab.path("home/plain/tiny.bin").exists()
}

#[test]
fn what_a_trusted_key_signed_is_carried_out() {
    let lab = lab(&["anna", "berta"]);
    let unsigned = run(&lab, &["apply", "--yes"]);
    assert_eq!((unsigned.code, has_it(&lab)), (1, false), "{}", unsigned.err);
    assert!(
        unsigned.err.contains("manifests/lab.toml is not signed") && unsigned.err.contains("larder sign"),
        "{}",
        unsigned.err
    );
    assert_eq!(run(&lab, &["plan"]).code, 0, "looking needs nobody's word");
    assert_eq!(run(&lab, &["sign", "--check"]).code, 3);
    let signed = sign(&lab, "berta");
    assert_eq!(signed.code, 0, "{}", signed.err);
    assert!(signed.out.contains("signed by berta"), "{}", signed.out);
    assert_eq!(run(&lab, &["sign", "--check"]).code, 0);
    let applied = run(&lab, &["apply", "--yes"]);
    assert_eq!((applied.code, has_it(&lab)), (0, true), "{}{}", applied.out, applied.err);
}

#[test]
fn the_signature_is_one_that_ssh_itself_accepts_and_the_other_way_round() {
    let lab = lab(&["anna"]);
    assert_eq!(sign(&lab, "anna").code, 0);
    let public = std::fs::read_to_string(lab.path("keys/anna.pub")).unwrap();
    lab.write("allowed", format!("anna {public}"));
    let file = lab.path("manifests/lab.toml");
    let mut verify = Command::new("ssh-keygen");
    verify.args(["-Y", "verify", "-n", "larder", "-I", "anna", "-f"]).arg(lab.path("allowed"));
    verify.arg("-s").arg(lab.path("manifests/lab.toml.sig")).stdin(fs_err::File::open(&file).unwrap().into_parts().0);
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    larder::fsio::remove_file(&lab.path("manifests/lab.toml.sig")).unwrap();
    let by_hand = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", "larder", "-f"])
        .arg(lab.path("keys/anna"))
        .arg(&file)
        .output();
    assert!(by_hand.unwrap().status.success());
    assert_eq!(run(&lab, &["apply", "--yes"]).code, 0);
}

#[test]
fn nothing_else_is_carried_out_by_any_command() {
    for (name, damage, expected) in [
        ("changed", "change", "is not what anna signed"),
        ("a stranger's", "stranger", "which [trust] keys does not have"),
        ("for something else", "namespace", "is not what anna signed"),
        ("no signature", "garbage", "is no signature of ssh"),
        ("endless", "endless", "is no signature of ssh"),
        ("another file's", "other", "is not what anna signed"),
        ("a lock that nobody signed", "lock", "inventory.lock is not signed"),
    ] {
        let lab = lab(&["anna"]);
        let stranger = key(&lab, "mallory");
        assert!(!stranger.is_empty());
        assert_eq!(sign(&lab, "anna").code, 0);
        let signature = lab.path("manifests/lab.toml.sig");
        let text = std::fs::read_to_string(&signature).unwrap();
        match damage {
            "change" => lab.write("manifests/lab.toml", manifest(&lab.path("")) + "# and more\n"),
            "stranger" => assert_eq!(sign(&lab, "mallory").code, 0),
            "garbage" => lab.write("manifests/lab.toml.sig", text.replace("SSH SIGNATURE", "SSH NATURE")),
            "endless" => lab.write("manifests/lab.toml.sig", text.repeat(1000)),
            "other" | "namespace" => {
                let (file, namespace) =
                    if damage == "other" { ("inventory.toml", "larder") } else { ("manifests/lab.toml", "git") };
                let signing = Command::new("ssh-keygen")
                    .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
                    .arg(lab.path("keys/anna"))
                    .stdin(fs_err::File::open(lab.path(file)).unwrap().into_parts().0)
                    .output();
                lab.write("manifests/lab.toml.sig", signing.unwrap().stdout);
            }
            _ => assert_eq!(run(&lab, &["lock"]).code, 0),
        }
        for arguments in
            [&["apply", "--yes"][..], &["copy", "--from", "source", "--yes"], &["copy", "--to", "keys", "--yes"]]
        {
            let said = run(&lab, arguments);
            assert_eq!((said.code, has_it(&lab)), (1, false), "{name} {arguments:?}: {}{}", said.out, said.err);
            assert!(said.err.contains(expected), "{name} {arguments:?}: {}", said.err);
        }
    }
}

/// A machine with nothing but an inventory, which trusts the same keys as `lab`, and what a person took from the drive.
fn fresh(lab: &Lab, drive: &Path) -> Lab {
    let fresh = Lab::new(&std::fs::read_to_string(lab.path("inventory.toml")).unwrap(), "");
    let script = format!("rm -r manifests; cp -r {0}/inventory.lock* {0}/manifests .", drive.display());
    assert!(Command::new("sh").args(["-ec", &script]).current_dir(fresh.path("")).status().unwrap().success());
    fresh
}

/// Whoever gets lock and manifests by a drive can tell whose word they have: the signatures travel with them.
#[test]
fn signatures_travel_on_a_drive_with_what_they_are_on() {
    let lab = lab(&["anna"]);
    assert_eq!((run(&lab, &["lock"]).code, sign(&lab, "anna").code, run(&lab, &["apply", "--yes"]).code), (0, 0, 0));
    let drive = tempfile::tempdir().unwrap();
    let folder = drive.path().to_str().unwrap();
    let packed = run(&lab, &["copy", "--to", folder, "--yes"]);
    assert_eq!(packed.code, 0, "{}{}", packed.out, packed.err);
    let machine = fresh(&lab, drive.path());
    assert_eq!(run(&machine, &["sign", "--check"]).code, 0);
    let taken = run(&machine, &["copy", "--from", folder, "--yes"]);
    assert_eq!((taken.code, has_it(&machine)), (0, true), "{}{}", taken.out, taken.err);
    // By the drive's own inventory, on a machine that has none.
    let bare = tempfile::tempdir().unwrap();
    let mut command = program::program(bare.path());
    command.args(["copy", "--from", folder, "--yes"]).env("PATH", "/usr/bin:/bin").current_dir(bare.path());
    let taken = program::said(&mut command, bare.path());
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    // On the way somebody writes another content into the manifest, or into the lock, or a signature is lost.
    let other = Sha256::of(b"what mallory wants to be run").to_string();
    let digest = Sha256::of(CONTENT).to_string();
    for (place, expected) in [
        ("manifests/lab.toml", "manifests/lab.toml is not what anna signed"),
        ("inventory.lock", "inventory.lock is not what anna signed"),
        ("manifests/lab.toml.sig", "manifests/lab.toml is not signed"),
        ("inventory.lock.sig", "inventory.lock is not signed"),
    ] {
        let path = drive.path().join(place);
        let before = std::fs::read_to_string(&path).unwrap();
        larder::fsio::remove_file(&path).unwrap();
        if !place.ends_with(".sig") {
            let changed = before.replace(&digest, &other);
            assert_ne!(changed, before);
            larder::fsio::write_atomic(&path, changed.as_bytes(), &Default::default()).unwrap();
        }
        let machine = fresh(&lab, drive.path());
        let refused = run(&machine, &["copy", "--from", folder, "--yes"]);
        assert!(refused.code != 0 && !has_it(&machine), "{place}: {}{}", refused.out, refused.err);
        assert!(
            refused.err.contains(expected) || refused.out.contains("does not have it"),
            "{place}: {}{}",
            refused.out,
            refused.err
        );
        larder::fsio::write_atomic(&path, before.as_bytes(), &Default::default()).unwrap();
    }
}

/// A machine whose people took lock, manifests and signatures out of the bucket, as `state` names them.
fn from_bucket(s3: &S3, state: &serde_json::Value, inventory: &str) -> Lab {
    let lab = Lab::new(&inventory.replace("pc1", "pc2"), "");
    larder::fsio::remove_file(&lab.path("manifests/lab.toml")).unwrap();
    let take = |place: &str, kind: &str, digest: &serde_json::Value, signature: &serde_json::Value| {
        let object = s3.on_disk("fleet", &format!("lab/{kind}/sha256/{}", digest.as_str().unwrap()));
        lab.write(place, std::fs::read(object).unwrap());
        lab.write(&format!("{place}.sig"), signature.as_str().unwrap());
    };
    take("inventory.lock", "locks", &state["lock"], &state["lock_signature"]);
    for kept in state["manifests"].as_array().unwrap() {
        take(kept["path"].as_str().unwrap(), "manifests", &kept["sha256"], &kept["signature"]);
    }
    lab
}

#[test]
fn signatures_lie_in_a_bucket_with_what_they_are_on() {
    let Some(s3) = S3::start(&["fleet"]) else { return };
    let files = [("tiny.bin", CONTENT.to_vec())];
    let lab = bucket_lab::machine("pc1", &s3, &["fleet"], &bucket_lab::artifact("tiny", "local", "", &files));
    bucket_lab::fill(&lab, &files);
    let inventory = std::fs::read_to_string(lab.path("inventory.toml")).unwrap();
    let inventory = format!("{inventory}\n[trust]\nrequire-signature = true\nkeys = [{:?}]\n", key(&lab, "anna"));
    lab.write("inventory.toml", &inventory);
    let run = |lab: &Lab, arguments: &[&str]| {
        program::said(bucket_lab::command(lab, arguments).env("PATH", "/usr/bin:/bin"), &lab.path(""))
    };
    for arguments in [&["lock"][..], &["sign", "--key", "keys/anna"], &["push", "--yes"]] {
        let said = run(&lab, arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
    }
    let state = s3.keys("fleet").into_iter().find(|key| key.ends_with("/state.json")).unwrap();
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(s3.on_disk("fleet", &state)).unwrap()).unwrap();
    let fresh = from_bucket(&s3, &state, &inventory);
    assert_eq!(run(&fresh, &["sign", "--check"]).code, 0);
    let applied = run(&fresh, &["apply", "--yes"]);
    assert_eq!(applied.code, 0, "{}{}", applied.out, applied.err);
    assert!(bucket_lab::has_all(&fresh, &files));
    // Who may write into the bucket may not say what is wanted.
    let manifest = state["manifests"][0]["sha256"].as_str().unwrap();
    let object = s3.on_disk("fleet", &format!("lab/manifests/sha256/{manifest}"));
    let changed = std::fs::read_to_string(&object).unwrap() + "# and more\n";
    larder::fsio::write_atomic(&object, changed.as_bytes(), &Default::default()).unwrap();
    let fresh = from_bucket(&s3, &state, &inventory);
    let refused = run(&fresh, &["apply", "--yes"]);
    assert!(refused.code == 1 && refused.err.contains("is not what anna signed"), "{}{}", refused.out, refused.err);
    assert!(!bucket_lab::has_all(&fresh, &files));
}

/// A lock that is another one when it is read than when its signature is looked at.
#[test]
fn what_was_read_must_be_what_was_signed() {
    let lab = lab(&["anna"]);
    assert_eq!((run(&lab, &["lock"]).code, sign(&lab, "anna").code), (0, 0));
    let lock = lab.path("inventory.lock");
    let signed = std::fs::read_to_string(&lock).unwrap();
    larder::fsio::remove_file(&lock).unwrap();
    assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
    let mut apply = lab.command(&["apply", "--yes"]);
    let apply = apply.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let apply = apply.spawn().unwrap();
    // Opens once larder reads; the signed lock lies there before that has read a byte.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&lock).unwrap();
    larder::fsio::remove_file(&lock).unwrap();
    lab.write("inventory.lock", &signed);
    pipe.write_all(format!("{signed}\n\n").as_bytes()).unwrap();
    drop(pipe);
    let said = apply.wait_with_output().unwrap();
    let err = String::from_utf8(said.stderr).unwrap();
    assert!(err.contains("inventory.lock is not what anna signed"), "{err}");
    assert_eq!((said.status.code(), has_it(&lab)), (Some(1), false), "{err}");
    assert_eq!(run(&lab, &["apply", "--yes"]).code, 0, "the signed one is carried out");
}

#[test]
fn keys_that_stand_elsewhere_or_are_written_otherwise_are_explained() {
    let lab = lab(&["anna"]);
    for (text, expected) in [
        ("[policy]\nrequire_signature = true\n", "[trust] require-signature = true"),
        ("[policy]\nrequire-signature = true\n", "it stands in another table"),
        ("[trust]\nrequire_signature = true\n", "write `require-signature`"),
        ("[sources]\nmax_rate = \"80 MB/s\"\n", "write `max-rate`"),
        ("[sources]\nmax_bytes = \"20 GB\"\n", "it is called max-download"),
        ("[policy]\nmax_rate = \"80 MB/s\"\n", "it stands in [sources]"),
    ] {
        lab.write("inventory.toml", format!("{INVENTORY}\n{text}"));
        let said = run(&lab, &["plan"]);
        assert!(said.code == 2 && said.err.contains(expected), "{text}: {}", said.err);
    }
}

#[test]
fn keys_that_cannot_be_used_are_explained_where_they_stand() {
    let lab = lab(&["anna"]);
    let trust = |keys: &str| format!("{INVENTORY}\n[trust]\nrequire-signature = true\nkeys = [{keys}]\n");
    for (keys, expected) in
        [("", "stands without `keys`"), ("\"ssh-ed25519 AAAA\"", "no public key of ssh"), ("\"\"", "no public key")]
    {
        lab.write("inventory.toml", trust(keys));
        let said = run(&lab, &["plan"]);
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(said.err.contains(expected) && said.err.contains("inventory.toml:"), "{}", said.err);
    }
    lab.write("inventory.toml", INVENTORY);
    let none = run(&lab, &["sign", "--key", "keys/nobody"]);
    assert_eq!(none.code, 1, "{}", none.err);
    assert!(none.err.contains("lab.toml cannot be signed with keys/nobody"), "{}", none.err);
}
