//! What `larder serve` hands out: only what lies in the stores, and what came or changed since it was started.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use larder::artifact::File;
use larder::digest::{Sha256, XetHash};
use larder::fsio::{self, WriteOptions};
use larder::serve::{Guests, Index, Served};
use serde_json::Value;

#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;
#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod mirror;

use machine::Machine;
use mirror::{COMMIT, Mirror, put, served};

const SECRET: &[u8] = b"SECRET of the server's user";

fn link(target: &Path, link: &Path) {
    if let Some(folder) = link.parent() {
        fsio::create_dir_all(folder, None).unwrap();
    }
    fsio::symlink_atomic(target, link, None).unwrap();
}

fn of_hub(file: (File, PathBuf)) -> Served {
    let mut served = served("tiny", "hf:acme/tiny", Some(COMMIT), vec![file]);
    served.artifact.files[0].xet = Some("1".repeat(64).parse::<XetHash>().unwrap());
    served
}

/// Every way to ask for the content of `tiny`'s file `model.bin`.
fn ways(digest: Sha256) -> [String; 4] {
    [
        "/files/tiny/model.bin".to_owned(),
        "/acme/tiny/resolve/main/model.bin".to_owned(),
        format!("/blobs/sha256/{digest}"),
        format!("/api/xet/v2/reconstructions/{}", "1".repeat(64)),
    ]
}

async fn ask(mirror: &Mirror, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(mirror.at(path)).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// The index names a file whose size is right, and what lies there is a link to somewhere else.
#[tokio::test]
async fn a_link_that_leads_out_of_the_stores_is_never_followed() {
    for known in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, secret) = put(dir.path(), "secret", SECRET, true);
        file.path = "model.bin".parse().unwrap();
        if !known {
            file.size = None;
        }
        for (name, planted) in [("file", "store/file/model.bin"), ("folder", "store/folder")] {
            let place = dir.path().join("store").join(name).join("model.bin");
            match name {
                "file" => link(&secret, &dir.path().join(planted)),
                _ => {
                    link(&secret, &dir.path().join("elsewhere/model.bin"));
                    link(&dir.path().join("elsewhere"), &dir.path().join(planted));
                }
            }
            assert_eq!(fs_err::read(&place).unwrap(), SECRET);
            let index = Index::of(vec![of_hub((file.clone(), place))], [dir.path().join("store")]);
            let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
            for way in ways(Sha256::of(SECRET)) {
                let (status, told) = ask(&mirror, &way).await;
                assert!(status == 404 && !told.contains("SECRET"), "{name} {way}: {status} {told}");
            }
            let have: Value = serde_json::from_str(&ask(&mirror, "/have").await.1).unwrap();
            assert_eq!(have["sha256"], serde_json::json!([]), "nor is it said to be here");
            assert_eq!(mirror.traffic.bytes(), 0);
        }
    }
}

/// What was in order when the server began may be something else when it is asked for.
#[tokio::test]
async fn a_link_that_is_turned_while_the_server_runs_is_not_followed_either() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (mut file, secret) = put(dir.path(), "secret", SECRET, true);
    let (_, place) = put(&store, "model.bin", SECRET, true);
    file.path = "model.bin".parse().unwrap();
    let index = Index::of(vec![of_hub((file, place.clone()))], [store]);
    let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
    assert_eq!(ask(&mirror, "/files/tiny/model.bin").await.0, 200);
    fsio::remove_file(&place).unwrap();
    link(&secret, &place);
    for way in ways(Sha256::of(SECRET)) {
        let (status, told) = ask(&mirror, &way).await;
        assert!(status == 500 && !told.contains("SECRET"), "{way}: {status} {told}");
        assert!(!told.contains(dir.path().to_str().unwrap()), "paths stay here: {told}");
    }
    // Nor does anybody wait for a pipe that nobody writes into.
    fsio::remove_file(&place).unwrap();
    assert!(Command::new("mkfifo").arg(&place).status().unwrap().success());
    assert_eq!(ask(&mirror, "/files/tiny/model.bin").await.0, 500);
}

/// The lab's tree of links: one store shows what lies in another.
#[tokio::test]
async fn links_between_stores_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, place) = put(&dir.path().join("models"), "weights.bin", b"weights", true);
    file.path = "model.bin".parse().unwrap();
    // The store's own folder is a link too, and another one comes into being only later.
    link(&dir.path().join("disk"), &dir.path().join("tree"));
    let shown = dir.path().join("tree/model.bin");
    let stores = ["models", "tree"].map(|name| dir.path().join(name));
    fsio::create_dir_all(&dir.path().join("disk"), None).unwrap();
    link(&place, &shown);
    let index = Index::of(vec![of_hub((file.clone(), shown.clone()))], stores.clone());
    let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
    assert_eq!(ask(&mirror, "/files/tiny/model.bin").await, (200, "weights".to_owned()));

    let later = dir.path().join("later");
    let index = Index::of(vec![of_hub((file, later.join("model.bin")))], [later.clone()]);
    let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
    assert_eq!(ask(&mirror, "/files/tiny/model.bin").await.0, 404);
    put(&later, "model.bin", b"weights", true);
    assert_eq!(ask(&mirror, "/files/tiny/model.bin").await, (200, "weights".to_owned()));
}

const INVENTORY: &str = "[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n";

fn artifact(name: &str, content: &[u8]) -> String {
    format!(
        "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\n\
         [[artifact.file]]\npath = \"{name}.bin\"\nsize = {}\nsha256 = \"{}\"\n",
        content.len(),
        Sha256::of(content)
    )
}

/// A running `larder serve`; ends when dropped.
struct Serving {
    child: Child,
    address: String,
    lines: RefCell<Lines<BufReader<ChildStderr>>>,
    /// What it has said so far.
    said: RefCell<Vec<String>>,
}

impl Serving {
    fn start(machine: &Machine) -> Self {
        let mut command = machine.command(&["serve", "--address", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = RefCell::new(BufReader::new(child.stderr.take().unwrap()).lines());
        let mut serving = Self { child, address: String::new(), lines, said: RefCell::default() };
        let line = serving.wait_for(" at http://");
        line.split_once(" at ").unwrap().1.trim().clone_into(&mut serving.address);
        serving
    }

    /// Asks it to look again at what it serves.
    fn hang_up(&self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    }

    /// Reads what it says until a line with these words.
    fn wait_for(&self, words: &str) -> String {
        loop {
            let line = self.lines.borrow_mut().next().unwrap_or_else(|| panic!("it never said {words:?}")).unwrap();
            self.said.borrow_mut().push(format!("{line}\n"));
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn asked(serving: &Serving, path: &str) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client.get(format!("{}{path}", serving.address)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    })
}

/// Through the program: a store's file is a link to a file of the same length that only this machine may read.
#[test]
fn the_program_serves_no_file_outside_its_stores_and_says_so() {
    let machine = Machine::new(INVENTORY, &artifact("tiny", SECRET));
    let secret = machine.path("private/key");
    fsio::write_atomic(&secret, SECRET, &WriteOptions::default()).unwrap();
    link(&secret, &machine.path("plain/tiny.bin"));
    let serving = Serving::start(&machine);
    let (status, told) = asked(&serving, "/files/tiny/tiny.bin");
    assert!(status == 404 && !told.contains("SECRET"), "{status} {told}");
    assert!(serving.wait_for("tiny/tiny.bin is not served").contains("leads out of the stores"));

    let both = format!("{INVENTORY}private = {{ layout = \"folder\", path = \"~/private\" }}\n");
    fsio::write_atomic(&machine.path("inventory.toml"), both.as_bytes(), &WriteOptions::default()).unwrap();
    let serving = Serving::start(&machine);
    assert_eq!(asked(&serving, "/files/tiny/tiny.bin").0, 200, "a declared store is no outside");
}

#[test]
fn what_is_applied_and_locked_later_is_served_without_a_restart() {
    let machine = Machine::new(INVENTORY, &artifact("one", b"first"));
    let place = |name: &str, content: &[u8]| {
        fsio::write_atomic(&machine.path(&format!("plain/{name}.bin")), content, &WriteOptions::default()).unwrap();
    };
    place("one", b"first");
    machine.larder(&["lock"]).must_be(0);
    let serving = Serving::start(&machine);
    // Nobody has asked yet, so the first one who asks finds what has changed since.
    place("two", b"second");
    let manifest = artifact("one", b"first") + &artifact("two", b"second");
    fsio::write_atomic(&machine.path("manifests/lab.toml"), manifest.as_bytes(), &WriteOptions::default()).unwrap();
    machine.larder(&["lock"]).must_be(0);
    assert_eq!(asked(&serving, "/files/two/two.bin"), (200, "second".to_owned()));
    let lock = fs_err::read_to_string(machine.path("inventory.lock")).unwrap();
    assert_eq!(asked(&serving, "/lock"), (200, lock));
    serving.wait_for("serving 2 artifacts (2 files) now");

    // A lock that cannot be read for a moment is no reason to serve nothing.
    let manifest = manifest + &artifact("three", b"third");
    place("three", b"third");
    fsio::write_atomic(&machine.path("manifests/lab.toml"), b"[[artifact", &WriteOptions::default()).unwrap();
    serving.hang_up();
    serving.wait_for("what is served stays as it was");
    assert_eq!(asked(&serving, "/files/two/two.bin").0, 200);
    fsio::write_atomic(&machine.path("manifests/lab.toml"), manifest.as_bytes(), &WriteOptions::default()).unwrap();
    serving.hang_up();
    serving.wait_for("serving 3 artifacts");
    assert_eq!(asked(&serving, "/files/three/three.bin"), (200, "third".to_owned()));
}

/// The server reads what it remembers of its files: doing so must be no reason to read them again.
#[test]
fn nothing_is_looked_at_again_where_nothing_changed() {
    let machine = Machine::new(INVENTORY, &artifact("one", b"first"));
    fsio::write_atomic(&machine.path("plain/one.bin"), b"first", &WriteOptions::default()).unwrap();
    machine.larder(&["lock"]).must_be(0);
    machine.larder(&["verify"]).must_be(0);
    let serving = Serving::start(&machine);
    machine.larder(&["status"]).must_be(0);
    assert_eq!(asked(&serving, "/files/one/one.bin").0, 200);
    serving.hang_up();
    serving.wait_for("serving 1 artifact (1 file) now");
    let before = serving.said.borrow().concat();
    assert_eq!(before.matches("serving 1 artifact").count(), 2, "at the start, and when asked to: {before}");
}

/// Hugging Face's tools refuse such a file in the middle of a download: the server's admin hears it before.
#[test]
fn files_beyond_fifty_gigabytes_without_a_name_in_xet_are_named() {
    const LEN: u64 = 50_000_000_001;
    let digest = Sha256::of(b"not looked at");
    let manifest = |xet: &str| {
        format!(
            "[[artifact]]\nname = \"large\"\nstore = \"plain\"\nsource = \"hf:acme/large@{COMMIT}\"\n\
             [[artifact.file]]\npath = \"model.bin\"\nsize = {LEN}\nsha256 = \"{digest}\"\n{xet}"
        )
    };
    let machine = Machine::new(INVENTORY, &manifest(""));
    let place = machine.path("plain/model.bin");
    fsio::write_atomic(&place, b"", &WriteOptions::default()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&place).unwrap().set_len(LEN).unwrap();
    let serving = Serving::start(&machine);
    let line = serving.wait_for("large/model.bin has more than 50 GB");
    assert!(line.contains("larder lock --update large"), "{line}");
}
