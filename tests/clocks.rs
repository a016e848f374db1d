//! Machines whose clocks are years apart: what arrives is proven by digests, and no clock is believed.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use larder::digest::Sha256;

#[path = "support/program.rs"]
mod program;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;

use program::{INVENTORY, Lab, Said};
use sshd::{Sshd, remote_words};

const CONTENT: &[u8] = b"weights that are right whatever time it is";
/// Twenty years ahead, and ten behind.
const CLOCKS: [&str; 2] = ["+7300d", "-3650d"];

/// The library of Debian's `faketime`, which tells programs another time.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let found = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|library| library.exists());
    if found.is_none() {
        skip::skipped("faketime is missing; install it with scripts/test-parts");
    }
    found
}

/// What makes a program's clock wrong by `by`; how long something takes it still measures rightly.
fn wrong_clock(library: &Path, by: &str) -> [(&'static str, String); 3] {
    let library = library.display().to_string();
    [("LD_PRELOAD", library), ("FAKETIME", by.to_owned()), ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned())]
}

fn manifest() -> String {
    format!(
        "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n\
         [[artifact.file]]\npath = \"tiny.bin\"\nsize = {}\nsha256 = \"{}\"\n",
        CONTENT.len(),
        Sha256::of(CONTENT)
    )
}

fn full_machine() -> Lab {
    let lab = Lab::new(INVENTORY, &manifest());
    lab.write("home/plain/tiny.bin", CONTENT);
    // Written by a machine whose clock was ahead, too.
    let touched = Command::new("touch").args(["-d", "2061-07-28"]).arg(lab.path("home/plain/tiny.bin")).status();
    assert!(touched.unwrap().success());
    lab
}

#[track_caller]
fn assert_has_it(lab: &Lab, said: &Said) {
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(std::fs::read(lab.path("home/plain/tiny.bin")).unwrap() == CONTENT);
}

/// With the right clock again, what was proven at another time is in order, and is read again when that is asked for.
#[track_caller]
fn assert_goes_on(lab: &Lab) {
    for arguments in [&["status"][..], &["verify", "--max-age", "7d"], &["verify", "--full"], &["apply", "--yes"]] {
        let said = lab.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
    }
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server with a certificate that is good for one day only; its address and the certificate's fingerprint.
fn serve(lab: &Lab) -> (Serving, String, String) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=pc2 \
                  -keyout key.pem -out certificate.pem 2>&1";
    let made = Command::new("sh").args(["-c", script]).current_dir(lab.path("")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    let (certificate, key) = (lab.path("certificate.pem"), lab.path("key.pem"));
    let files = ["--certificate", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let mut command = lab.command(&["serve", "--address", "127.0.0.1:0"]);
    let mut child = command.args(files).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let serving = Serving(child);
    let mut told =
        |what: &str| said.by_ref().find_map(|line| Some(line.split_once(what)?.1.trim().to_owned())).unwrap();
    let (url, fingerprint) = (told(" at https://"), told("certificate: sha256:"));
    std::thread::spawn(move || said.for_each(drop));
    (serving, format!("https://{url}"), fingerprint)
}

/// A pinned certificate is known by its fingerprint: when it was good, by whose clock ever, plays no part.
#[test]
fn a_peer_with_a_pinned_certificate_is_known_at_any_time() {
    let Some(library) = faketime() else { return };
    let peer = full_machine();
    let (_serving, url, fingerprint) = serve(&peer);
    for by in CLOCKS {
        let sources = |pin: &str| {
            format!(
                "[sources]\norder = [\"peer\"]\npeers = [{{ name = \"pc2\", url = \"{url}\", certificate = \"{pin}\" }}]\n"
            )
        };
        let lab = Lab::new(&format!("{INVENTORY}\n{}", sources(&Sha256::of(b"another").to_string())), &manifest());
        let apply = || program::said(lab.command(&["apply", "--yes"]).envs(wrong_clock(&library, by)), &lab.path(""));
        let stranger = apply();
        assert!(stranger.code != 0 && !lab.path("home/plain/tiny.bin").exists(), "{}{}", stranger.out, stranger.err);
        lab.write("inventory.toml", format!("{INVENTORY}\n{}", sources(&fingerprint)));
        assert_has_it(&lab, &apply());
        assert_goes_on(&lab);
    }
}

#[test]
fn machines_whose_clocks_are_years_apart_copy_both_ways() {
    let (Some(sshd), Some(library)) = (Sshd::start(), faketime()) else { return };
    for by in CLOCKS {
        let copy = |here: &Lab, there: &Lab, arguments: &[&str]| {
            let clock: Vec<String> =
                wrong_clock(&library, by).iter().map(|(name, value)| format!("{name}={value}")).collect();
            let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
            let words = words.replace("env -i", &format!("env -i {}", clock.join(" ")));
            let mut command = here.command(&["copy", "--ssh", &sshd.client(), "--remote-larder", &words, "--yes"]);
            program::said(command.args(arguments).env("PATH", "/usr/bin:/bin"), &here.path(""))
        };
        let (here, there) = (Lab::new(INVENTORY, &manifest()), full_machine());
        assert_has_it(&here, &copy(&here, &there, &["pc9:"]));
        assert_goes_on(&here);
        let again = copy(&here, &there, &["pc9:"]);
        assert!(again.code == 0 && again.out.contains("in order"), "{}{}", again.out, again.err);
        let (here, there) = (full_machine(), Lab::new(INVENTORY, &manifest()));
        let given = copy(&here, &there, &["--to", "pc9:"]);
        assert_has_it(&there, &given);
        assert_goes_on(&there);
    }
}
