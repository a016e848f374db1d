//! By which cipher copies travel: the fastest that ssh has, unless somebody chose one.
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

use program::{INVENTORY, Lab};
use sshd::{Sshd, remote_words};

const CONTENT: &[u8] = b"what travels";

fn machine() -> Lab {
    let file = format!("path = \"one.bin\"\nsize = {}\nsha256 = \"{}\"\n", CONTENT.len(), Sha256::of(CONTENT));
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n";
    Lab::new(INVENTORY, &format!("{head}[[artifact.file]]\n{file}"))
}

/// Copies in both directions; the ciphers of all logins that this took.
fn ciphers_of_copies(sshd: &Sshd) -> Vec<String> {
    let client = sshd.client();
    for direction in [&["pc9:"][..], &["--to", "pc9:"]] {
        let (here, there) = (machine(), machine());
        let full = if direction.len() == 1 { &there } else { &here };
        full.write("home/plain/one.bin", CONTENT);
        let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
        let mut command = here.command(&["copy", "--ssh", &client, "--remote-larder", &words, "--yes"]);
        command.args(direction).env("PATH", "/usr/bin:/bin");
        let copied = program::said(&mut command, &here.path(""));
        assert_eq!(copied.code, 0, "{direction:?}: {}{}", copied.out, copied.err);
    }
    sshd.ciphers()
}

#[test]
fn copies_take_aes_gcm_where_nobody_chose_a_cipher() {
    let Some(sshd) = Sshd::start() else { return };
    let ciphers = ciphers_of_copies(&sshd);
    // A processor without instructions for AES is faster with ssh's own first choice.
    let aes = std::fs::read_to_string("/proc/cpuinfo").unwrap().split_whitespace().any(|word| word == "aes");
    let expected = if aes { "aes128-gcm@openssh.com" } else { "chacha20-poly1305@openssh.com" };
    assert!(ciphers.len() >= 2 && ciphers.iter().all(|cipher| cipher == expected), "{ciphers:?}");
}

#[test]
fn copies_keep_to_the_cipher_that_somebody_chose() {
    let Some(sshd) = Sshd::start() else { return };
    sshd.configure_client("  Ciphers aes256-ctr\n");
    let ciphers = ciphers_of_copies(&sshd);
    assert!(ciphers.len() >= 2 && ciphers.iter().all(|cipher| cipher == "aes256-ctr"), "{ciphers:?}");
}
