//! `larder copy` with a machine that has no larder: one is sent and used, or its files are read by sftp.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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
use sshd::Sshd;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// git's name for a file of `{}`.
const CONFIG_ID: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let word = |n: u64| *Sha256::of(&(n ^ seed).to_le_bytes()).as_bytes();
    (0..len as u64).flat_map(word).take(len).collect()
}

/// An artifact in a plain folder, and one in a cache.
struct Models {
    plain: Vec<u8>,
    weights: Vec<u8>,
}

impl Models {
    fn new() -> Self {
        Self { plain: noise(6 << 20, 0), weights: noise(300_000, 1 << 40) }
    }

    fn manifest(&self) -> String {
        let file = |path: &str, bytes: &[u8]| {
            let digest = Sha256::of(bytes);
            format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{digest}\"\n", bytes.len())
        };
        format!(
            "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n{}{}\n\
             [[artifact]]\nname = \"hand\"\nstore = \"cache\"\nsource = \"hf:acme/hand@{COMMIT}\"\n{}\
             [[artifact.file]]\npath = \"config.json\"\nsize = 2\ngit-sha1 = \"{CONFIG_ID}\"\n",
            file("sub/plain.bin", &self.plain),
            file("empty-ish.bin", b"x"),
            file("model.safetensors", &self.weights),
        )
    }

    /// Puts all of it where the programs on a machine have it, below `home`.
    fn put(&self, home: &Path) {
        let write = |place: String, bytes: &[u8]| {
            larder::fsio::write_atomic(&home.join(place), bytes, &Default::default()).unwrap();
        };
        write("plain/sub/plain.bin".to_owned(), &self.plain);
        write("plain/empty-ish.bin".to_owned(), b"x");
        let repo = "hub/models--acme--hand";
        write(format!("{repo}/blobs/{}", Sha256::of(&self.weights)), &self.weights);
        write(format!("{repo}/blobs/{CONFIG_ID}"), b"{}");
    }

    fn assert_has_all(&self, lab: &Lab) {
        let read = |path: String| std::fs::read(lab.path(&format!("home/{path}"))).unwrap();
        let snapshot = format!("hub/models--acme--hand/snapshots/{COMMIT}");
        assert!(read("plain/sub/plain.bin".to_owned()) == self.plain);
        assert!(read(format!("{snapshot}/model.safetensors")) == self.weights);
        assert!(read(format!("{snapshot}/config.json")) == b"{}");
    }
}

/// A machine of the lab that has no larder, reached by a real sshd.
struct Bare {
    home: tempfile::TempDir,
    sshd: Sshd,
}

impl Bare {
    fn start(path: &str) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let sshd = Sshd::start_at(home.path(), path)?;
        Some(Self { home, sshd })
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.home.path().join(relative)
    }

    /// Whoever takes from it, or gives to it: its inventory says where the stores of both are.
    fn other(&self, models: &Models) -> Lab {
        let at = |store: &str| self.path(store).display().to_string();
        let there = format!("\n[machines.pc9.stores]\nplain = \"{}\"\ncache = \"{}\"\n", at("plain"), at("hub"));
        Lab::new(&format!("{INVENTORY}{there}"), &models.manifest())
    }

    fn copy(&self, lab: &Lab, arguments: &[&str]) -> Said {
        let mut command = lab.command(&["copy", "--ssh", &self.sshd.client()]);
        program::said(command.args(arguments).env("PATH", "/usr/bin:/bin"), &lab.path(""))
    }

    /// What was left of sending.
    fn sent(&self) -> Vec<PathBuf> {
        let Ok(found) = std::fs::read_dir(self.path(".cache/larder/bin")) else { return Vec::new() };
        found.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn a_larder_is_sent_to_a_machine_without_one_and_used_from_then_on() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let models = Models::new();
    let here = pc9.other(&models);
    models.put(pc9.home.path());
    let unasked = pc9.copy(&here, &["pc9:", "--yes"]);
    assert!(unasked.code == 1 && pc9.sent().is_empty(), "nothing is sent unasked: {}", unasked.err);
    assert!(unasked.err.contains("--send-larder") && unasked.err.contains("--sftp"), "{}", unasked.err);
    let taken = pc9.copy(&here, &["--send-larder", "pc9:", "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    models.assert_has_all(&here);
    let sent = pc9.sent();
    assert!(sent.len() == 1 && taken.err.contains("sending larder to pc9"), "{sent:?} {}", taken.err);
    let (mode, own) = (std::fs::metadata(&sent[0]).unwrap().permissions().mode(), env!("CARGO_BIN_EXE_larder"));
    assert!(
        mode & 0o777 == 0o700 && std::fs::metadata(&sent[0]).unwrap().len() == std::fs::metadata(own).unwrap().len()
    );
    let another = pc9.other(&models);
    let again = pc9.copy(&another, &["pc9:", "--yes"]);
    assert_eq!(again.code, 0, "it is there now: {}{}", again.out, again.err);
    models.assert_has_all(&another);
    assert!(!again.err.contains("sending"), "{}", again.err);
}

#[test]
fn a_larder_that_was_sent_takes_what_it_is_given() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let models = Models::new();
    let here = pc9.other(&models);
    models.put(&here.path("home"));
    let unasked = pc9.copy(&here, &["--to", "pc9:", "--yes"]);
    assert!(unasked.code == 1 && unasked.err.contains("there is no larder on pc9"), "{}", unasked.err);
    let given = pc9.copy(&here, &["--send-larder", "--to", "pc9:", "--yes", "tiny"]);
    assert_eq!(given.code, 0, "{}{}", given.out, given.err);
    assert!(std::fs::read(pc9.path("plain/sub/plain.bin")).unwrap() == models.plain);
    assert!(!pc9.path("hub").exists(), "only what was asked for");
}

#[test]
fn a_larder_that_does_not_run_there_is_said_to_and_how_to_make_one_that_does() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let models = Models::new();
    let here = pc9.other(&models);
    here.write("old", "#!/bin/sh\necho 'version `GLIBC_9.99 not found' >&2\nexit 1\n");
    let program = format!("--send-larder={}", here.path("old").display());
    let sent = pc9.copy(&here, &[&program, "pc9:", "--yes"]);
    assert_eq!(sent.code, 1, "{}", sent.err);
    for words in ["does not run there", "GLIBC_9.99 not found", "scripts/static"] {
        assert!(sent.err.contains(words), "{words}: {}", sent.err);
    }
}

#[test]
fn a_machine_of_another_kind_is_not_sent_what_it_cannot_run() {
    let folder = tempfile::tempdir().unwrap();
    let uname = folder.path().join("uname");
    larder::fsio::write_atomic(&uname, b"#!/bin/sh\necho Linux riscv64\n", &Default::default()).unwrap();
    std::fs::set_permissions(&uname, PermissionsExt::from_mode(0o755)).unwrap();
    let Some(pc9) = Bare::start(&format!("{}:/usr/bin:/bin", folder.path().display())) else { return };
    let here = pc9.other(&Models::new());
    let sent = pc9.copy(&here, &["--send-larder", "pc9:", "--yes"]);
    assert!(sent.code == 1 && pc9.sent().is_empty(), "{}", sent.err);
    assert!(sent.err.contains("pc9 is Linux riscv64") && sent.err.contains("scripts/static"), "{}", sent.err);
}

#[test]
fn a_machine_without_larder_is_read_by_sftp() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let models = Models::new();
    let here = pc9.other(&models);
    models.put(pc9.home.path());
    let shown = pc9.copy(&here, &["--sftp", "pc9:", "--dry-run"]);
    assert!(shown.code == 0 && shown.out.contains("pc9 (peer)"), "{}{}", shown.out, shown.err);
    let taken = pc9.copy(&here, &["--sftp", "pc9:", "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    models.assert_has_all(&here);
    assert!(!pc9.path(".cache").exists(), "nothing is written there");
    let twice = pc9.copy(&here, &["--sftp", "--to", "pc9:"]);
    assert_eq!(twice.code, 2, "{}", twice.err);
}

#[test]
fn what_is_rotten_or_missing_there_does_not_come_by_sftp() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let models = Models::new();
    let here = pc9.other(&models);
    models.put(pc9.home.path());
    let write = |place: &str, bytes: &[u8]| {
        larder::fsio::write_atomic(&pc9.path(place), bytes, &Default::default()).unwrap();
    };
    write("plain/sub/plain.bin", &noise(6 << 20, 7));
    larder::fsio::remove_file(&pc9.path("plain/empty-ish.bin")).unwrap();
    // Rotten as a blob, but the snapshot has the content itself, as clients without links leave it.
    let repo = "hub/models--acme--hand";
    write(&format!("{repo}/blobs/{}", Sha256::of(&models.weights)), &noise(300_000, 9));
    write(&format!("{repo}/snapshots/{COMMIT}/model.safetensors"), &models.weights);
    let taken = pc9.copy(&here, &["--sftp", "pc9:", "--yes"]);
    assert_eq!(taken.code, 4, "{}{}", taken.out, taken.err);
    assert!(taken.out.contains("tiny/sub/plain.bin") && taken.out.contains("pc9 does not have it"), "{}", taken.out);
    assert!(!here.path("home/plain/sub/plain.bin").exists());
    let snapshot = format!("home/hub/models--acme--hand/snapshots/{COMMIT}/model.safetensors");
    assert!(std::fs::read(here.path(&snapshot)).unwrap() == models.weights, "its other place is read");
}

#[test]
fn a_machine_that_does_not_answer_by_sftp_is_explained() {
    let Some(pc9) = Bare::start("/usr/bin:/bin") else { return };
    let here = pc9.other(&Models::new());
    let mut command = here.command(&["copy", "--sftp", "pc9:", "--yes", "--ssh", "/nowhere/ssh"]);
    let said = program::said(&mut command, &here.path(""));
    assert!(said.code == 1 && said.err.contains("/nowhere/ssh cannot be started"), "{}", said.err);
    let mut command = here.command(&["copy", "--sftp", "pc9:", "--yes", "--ssh", "echo hello, this is no sftp; "]);
    let said = program::said(command.env("PATH", "/usr/bin:/bin"), &here.path(""));
    assert!(said.code == 1 && said.err.contains("does not speak sftp"), "{}", said.err);
}
