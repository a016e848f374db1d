//! Copies in bad conditions: far away, cut off, on a disk that fills, from files that vanish or rot; and caches that rsync breaks.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use larder::digest::Sha256;

#[path = "support/disk.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod disk;
#[path = "support/exfat.rs"]
mod exfat;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/program.rs"]
mod program;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod python;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/sshd.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod sshd;
#[path = "support/stick.rs"]
mod stick;

use disk::{Disk, Kind};
use parts::skip;
use program::{INVENTORY, Lab, Said};
use relay::Relay;
use rstest::rstest;
use sshd::{Sshd, remote_words};
use stick::Stick;

const MIB: usize = 1 << 20;
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state ^ (state >> 29)).to_le_bytes()
    };
    std::iter::repeat_with(next).take(len.div_ceil(8)).collect::<Vec<_>>().concat()[..len].to_vec()
}

fn contents() -> Vec<(&'static str, Vec<u8>)> {
    vec![("config.json", b"{}".to_vec()), ("large.bin", noise(16 * MIB))]
}

fn manifest() -> String {
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n";
    let file = |(path, bytes): &(&str, Vec<u8>)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    format!("{head}{}", contents().iter().map(file).collect::<String>())
}

fn empty_machine(sources: &str) -> Lab {
    Lab::new(
        &format!("{INVENTORY}\n[sources]\nstall-timeout = \"15 s\"\nretry-pause = \"50 ms\"\n{sources}"),
        &manifest(),
    )
}

fn full_machine() -> Lab {
    let lab = empty_machine("");
    contents().iter().for_each(|(path, bytes)| lab.write(&format!("home/plain/{path}"), bytes));
    lab
}

fn assert_has_all(lab: &Lab) {
    for (path, bytes) in contents() {
        assert!(std::fs::read(lab.path(&format!("home/plain/{path}"))).unwrap() == bytes, "{path}");
    }
}

fn take(here: &Lab, client: &str, there: &Lab) -> Said {
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    let mut command = here.command(&["copy", "--ssh", client, "--remote-larder", &words, "pc9:", "--yes"]);
    program::said(command.env("PATH", "/usr/bin:/bin"), &here.path(""))
}

/// 50 ms in each direction, which is a machine on another continent.
#[test]
fn a_machine_that_is_far_away_gives_everything() {
    let Some(sshd) = Sshd::start() else { return };
    let relay = Relay::to(sshd.port());
    relay.delay(std::time::Duration::from_millis(50));
    let (here, there) = (empty_machine(""), full_machine());
    let copied = take(&here, &sshd.client_by(relay.port()), &there);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&here);
}

/// Every connection breaks after 6 MiB; what arrived is not sent again.
#[test]
fn connections_that_break_again_and_again_cost_only_what_was_on_them() {
    let Some(sshd) = Sshd::start() else { return };
    let relay = Relay::to(sshd.port());
    relay.cut_after(6 * MIB as u64);
    let (here, there) = (empty_machine(""), full_machine());
    let copied = take(&here, &sshd.client_by(relay.port()), &there);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&here);
    assert!(relay.passed() < 26 * MIB as u64, "{} bytes for 16 MiB", relay.passed());
}

/// Gives from `here` by `client`.
fn give(here: &Lab, client: &str, there: &Lab, how: &str) -> Said {
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    let mut command = here.command(&["copy", "--ssh", client, "--remote-larder", &words, "--to", "pc9:", how]);
    program::said(command.env("PATH", "/usr/bin:/bin"), &here.path(""))
}

/// An ssh that does `script` where it is a login that only carries, and is the usual one else.
fn ssh_with(lab: &Lab, sshd: &Sshd, script: &str) -> String {
    let usual = sshd.client();
    let text = format!("case \"$*\" in *-oBatchMode=yes*) {script};; esac\nexec {usual} \"$@\"\n");
    lab.write("ssh.sh", text);
    format!("sh {}", lab.path("ssh.sh").display())
}

/// Each login has a cipher of its own, and so a core: what is given goes over several, as what is taken does.
#[test]
fn what_is_given_goes_over_several_logins_and_over_one_where_there_may_be_no_more() {
    let Some(sshd) = Sshd::start() else { return };
    let (here, there) = (full_machine(), empty_machine(""));
    let shown = give(&here, &sshd.client(), &there, "--dry-run");
    assert_eq!((shown.code, sshd.logins()), (0, 1), "to look needs one: {}{}", shown.out, shown.err);
    let given = give(&here, &sshd.client(), &there, "--yes");
    assert_eq!((given.code, sshd.logins()), (0, 5), "{}{}", given.out, given.err);
    assert_has_all(&there);
    let there = empty_machine("");
    let given = give(&here, &ssh_with(&here, &sshd, "exit 255"), &there, "--yes");
    assert_eq!((given.code, sshd.logins()), (0, 6), "{}{}", given.out, given.err);
    assert_has_all(&there);
}

/// Logins that die on the way: the others go on.
#[test]
fn logins_that_die_while_something_is_given_cost_only_what_was_on_them() {
    let Some(sshd) = Sshd::start() else { return };
    let relay = Relay::to(sshd.port());
    let (here, there) = (full_machine(), empty_machine(""));
    let by_relay = format!("exec {} \"$@\"", sshd.client_by(relay.port()));
    let client = ssh_with(&here, &sshd, &by_relay);
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    let mut give = here.command(&["copy", "--ssh", &client, "--remote-larder", &words, "--to", "pc9:", "--yes"]);
    // So slowly that there is something to break.
    give.args(["--max-rate", "8MB/s", "--json"])
        .env("PATH", "/usr/bin:/bin")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let giving = give.spawn().unwrap();
    let (greeted, begin) = (relay.passed(), std::time::Instant::now());
    // All logins are there once the larder over there has begun to write.
    while !there.path("home/plain/.larder").exists() || relay.passed() == greeted {
        assert!(begin.elapsed() < std::time::Duration::from_secs(120), "nothing begins");
        std::thread::yield_now();
    }
    relay.cut_now();
    let output = giving.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_has_all(&there);
    let outcome: serde_json::Value = serde_json::from_str(&out).unwrap();
    let all: u64 = contents().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let moved = outcome["moved_bytes"].as_u64().unwrap();
    assert!(moved >= all && moved < all + 6 * MIB as u64, "{moved} of {all}");
}

/// All connections end in the middle, and none is made any more; then the second run takes what is missing.
#[test]
fn a_connection_that_is_gone_for_good_leaves_a_state_to_go_on_from() {
    let Some(sshd) = Sshd::start() else { return };
    let relay = Relay::to(sshd.port());
    relay.cut_all_after(9 * MIB as u64);
    let (here, there) = (empty_machine("retries = 1\n"), full_machine());
    let failed = take(&here, &sshd.client_by(relay.port()), &there);
    // The small file has a login of its own, which may have been there in time.
    let is_small_there = here.path("home/plain/config.json").exists();
    assert_eq!(failed.code, if is_small_there { 4 } else { 1 }, "{}{}", failed.out, failed.err);
    assert!(failed.out.contains("large.bin") && failed.out.contains("pc9"), "{}", failed.out);
    assert!(!here.path("home/plain/large.bin").exists());
    let before = relay.passed();
    relay.mend();
    let copied = take(&here, &sshd.client_by(relay.port()), &there);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&here);
    assert!(before > 8 * MIB as u64 && relay.passed() < 20 * MIB as u64, "{before} and then {}", relay.passed());
}

/// Which way contents go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Here,
    There,
}

/// Who is killed while a copy is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    /// The larder that was started here.
    Larder,
    /// The larder over there, each time it is there.
    Other,
    /// sshd, with its sessions.
    Sshd,
}

/// kill -9; the second run moves only what the first one did not have on its target's disk.
#[rstest]
fn whoever_is_killed_only_what_is_missing_comes_again(
    #[values(Way::Here, Way::There)] way: Way,
    #[values(Victim::Larder, Victim::Other, Victim::Sshd)] victim: Victim,
) {
    let Some(mut sshd) = Sshd::start() else { return };
    let (full, empty) = (full_machine(), empty_machine("retries = 0\n"));
    let (relay, here, there, place): (_, _, _, &[&str]) = match way {
        Way::Here => (Relay::to(sshd.port()), &empty, &full, &["pc9:"]),
        Way::There => (Relay::of_what_is_sent_to(sshd.port()), &full, &empty, &["--to", "pc9:"]),
    };
    // Each larder over there leaves its number before it begins.
    let words = remote_words(Path::new(env!("CARGO_BIN_EXE_larder")), &there.path(""));
    there.write("larder.sh", format!("echo $$ >> {}; exec {words} \"$@\"\n", there.path("numbers").display()));
    let (client, remote) = (sshd.client_by(relay.port()), format!("sh {}", there.path("larder.sh").display()));
    let copy = || {
        let mut command = here.command(&["copy", "--yes", "--ssh", &client, "--remote-larder", &remote]);
        command.args(place).env("PATH", "/usr/bin:/bin");
        command
    };
    relay.hold_after(9 * MIB as u64);
    let mut copying = copy().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    relay.wait_until_held();
    match victim {
        Victim::Larder => copying.kill().unwrap(),
        Victim::Other => {
            let numbers = std::fs::read_to_string(there.path("numbers")).unwrap();
            numbers.lines().for_each(|number| kill(number.trim()));
            assert!(!numbers.is_empty());
        }
        Victim::Sshd => sshd.kill_all(),
    }
    // What was under way to the killed one stays held until it is gone.
    relay.cut_now();
    assert_ne!(copying.wait().unwrap().code(), Some(0));
    assert!(!empty.path("home/plain/large.bin").exists());
    if victim == Victim::Sshd {
        sshd.start_again();
    }
    relay.mend();
    let copied = program::said(&mut copy(), &here.path(""));
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert_has_all(&empty);
    assert!(relay.passed() < 16 * MIB as u64, "{} came again", relay.passed());
}

fn kill(number: &str) {
    // One that ended by itself is gone already.
    let _ = Command::new("kill").args(["-9", number]).stderr(Stdio::null()).status().unwrap();
}

#[test]
fn a_source_file_that_vanishes_or_changes_on_the_way_never_becomes_a_wrong_one() {
    let Some(sshd) = Sshd::start() else { return };
    for rots in [false, true] {
        let relay = Relay::to(sshd.port());
        relay.hold_after(4 * MIB as u64);
        let (here, there) = (empty_machine("retries = 1\n"), full_machine());
        let file = there.path("home/plain/large.bin");
        let failed = std::thread::scope(|scope| {
            let client = sshd.client_by(relay.port());
            let copying = scope.spawn({
                let (here, there) = (&here, &there);
                move || take(here, &client, there)
            });
            relay.wait_until_held();
            match rots {
                true => {
                    let all_zero =
                        format!("dd if=/dev/zero of='{}' bs=1M seek=12 count=4 conv=notrunc", file.display());
                    assert!(Command::new("sh").args(["-c", &all_zero]).output().unwrap().status.success());
                }
                false => larder::fsio::remove_file(&file).unwrap(),
            }
            relay.cut_now();
            relay.mend();
            copying.join().unwrap()
        });
        assert_eq!(failed.code, 4, "{rots}: {}{}", failed.out, failed.err);
        assert!(failed.out.contains("tiny/large.bin: "), "{rots}: {}", failed.out);
        assert!(!here.path("home/plain/large.bin").exists() && here.path("home/plain/config.json").exists());
        there.write("home/plain/large.bin", &contents()[1].1);
        let copied = take(&here, &sshd.client_by(relay.port()), &there);
        assert_eq!(copied.code, 0, "{rots}: {}{}", copied.out, copied.err);
        assert_has_all(&here);
    }
}

#[test]
fn a_target_without_room_is_told_before_and_one_that_fills_is_told_after() {
    if !rustix::process::geteuid().is_root() {
        return skip::skipped("small file systems need root");
    }
    let Some(sshd) = Sshd::start() else { return };
    let disk = Disk::make(Kind::Memory { inodes: 1000 });
    let inventory = INVENTORY.replace("~/plain", disk.path().join("plain").to_str().unwrap());
    let (here, there) = (Lab::new(&inventory, &manifest()), full_machine());
    larder::fsio::create_dir_all(&disk.path().join("plain"), None).unwrap();
    let filler = disk.fill(9 * MIB as u64);
    let full = take(&here, &sshd.client(), &there);
    assert_ne!(full.code, 0, "{}{}", full.out, full.err);
    assert!(full.out.contains("tiny") && full.out.contains("left for it"), "{}{}", full.out, full.err);
    larder::fsio::remove_file(&filler).unwrap();
    let relay = Relay::to(sshd.port());
    relay.hold_after(MIB as u64);
    let filled = std::thread::scope(|scope| {
        let client = sshd.client_by(relay.port());
        let copying = scope.spawn({
            let (here, there) = (&here, &there);
            move || take(here, &client, there)
        });
        relay.wait_until_held();
        disk.fill(0);
        relay.mend();
        copying.join().unwrap()
    });
    // What larder reserved at the beginning cannot be taken from it any more; what comes later says that there is no room.
    let large_is_here = std::fs::read(disk.path().join("plain/large.bin")).is_ok_and(|it| it == contents()[1].1);
    match filled.code {
        0 => assert!(large_is_here, "{}{}", filled.out, filled.err),
        4 | 1 => assert!(filled.out.contains("No space left"), "{}{}", filled.out, filled.err),
        _ => panic!("{}{}", filled.out, filled.err),
    }
    assert!(!disk.path().join("plain/large.bin").exists() || large_is_here, "nothing that is wrong is visible");
    larder::fsio::remove_file(&filler).unwrap();
    let copied = take(&here, &sshd.client(), &there);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    assert!(std::fs::read(disk.path().join("plain/large.bin")).unwrap() == contents()[1].1);
}

/// Reads every file of a snapshot as a program would that has no network, and prints digests.
const LOAD: &str = "
import hashlib, pathlib, sys
from huggingface_hub import snapshot_download
root = pathlib.Path(snapshot_download('acme/hand', local_files_only=True))
for path in ['config.json', 'model.safetensors']:
    print(path, hashlib.sha256((root / path).read_bytes()).hexdigest())
";

/// A cache as new clients make it: the snapshot's link leads to the repository's blob, which is a link to a shared one.
fn two_hop_cache(home: &Path, weights: &[u8]) {
    let script = format!(
        "set -e; mkdir -p hub/blobs/ab hub/models--acme--hand/blobs hub/models--acme--hand/refs \
           hub/models--acme--hand/snapshots/{COMMIT}
         cd hub; printf '1\\n' > blobs/.huggingface-shared-blobs
         cp \"$WEIGHTS\" blobs/ab/abcd; printf 'models--acme--hand/blobs/%s\\n' {digest} > blobs/ab/abcd.refs
         cd models--acme--hand; printf %s {COMMIT} > refs/main
         ln -s ../../blobs/ab/abcd blobs/{digest}
         ln -s ../../blobs/{digest} snapshots/{COMMIT}/model.safetensors
         printf '{{}}' > blobs/{config}; ln -s ../../blobs/{config} snapshots/{COMMIT}/config.json",
        digest = Sha256::of(weights),
        config = CONFIG_ID,
    );
    let made = Command::new("sh").args(["-c", &script]).current_dir(home).env("WEIGHTS", home.join("weights")).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// git's name for a file of `{}`.
const CONFIG_ID: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";

fn hand(weights: &[u8]) -> String {
    format!(
        "[[artifact]]\nname = \"hand\"\nstore = \"cache\"\nsource = \"hf:acme/hand@{COMMIT}\"\n\
         [[artifact.file]]\npath = \"config.json\"\nsize = 2\ngit-sha1 = \"{CONFIG_ID}\"\n\
         [[artifact.file]]\npath = \"model.safetensors\"\nsize = {}\nsha256 = \"{}\"\n",
        weights.len(),
        Sha256::of(weights)
    )
}

/// The test that larder is needed.
#[test]
fn a_cache_of_two_hops_loads_offline_after_copy_and_does_not_after_rsync() {
    let Some(sshd) = Sshd::start() else { return };
    let weights = noise(300_000);
    let (here, there) = (Lab::new(INVENTORY, &hand(&weights)), Lab::new(INVENTORY, &hand(&weights)));
    there.write("home/weights", &weights);
    two_hop_cache(&there.path("home"), &weights);
    let copied = take(&here, &sshd.client(), &there);
    assert_eq!(copied.code, 0, "{}{}", copied.out, copied.err);
    let rsynced = tempfile::tempdir().unwrap();
    larder::fsio::create_dir_all(&rsynced.path().join("hub"), None).unwrap();
    let folder = there.path("home/hub/models--acme--hand");
    let rsync = Command::new("rsync").arg("-a").arg(&folder).arg(rsynced.path().join("hub")).status().unwrap();
    assert!(rsync.success(), "rsync is content with itself");
    for name in python::CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let loaded = python::output(python::client(&python, &here.path("home")).args(["-c", LOAD]));
        assert!(loaded.contains(&format!("model.safetensors {}", Sha256::of(&weights))), "{name}: {loaded}");
        let broken = python::client(&python, rsynced.path()).args(["-c", LOAD]).output().unwrap();
        let said = String::from_utf8_lossy(&broken.stderr);
        assert!(!broken.status.success() && said.contains("model.safetensors"), "{name}: {said}");
    }
}

/// FAT says only in the middle of a file that it is too long: larder says so before the first byte.
#[test]
fn a_drive_that_holds_no_long_files_is_told_before_the_first_byte() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = "truncate -s 64M image && mkfs.vfat -F 32 image >/dev/null && mkdir mnt && mount -o loop image mnt";
    let made = Command::new("sh").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
    if !made.status.success() {
        // No package brings a file system that the kernel was built without.
        let kernel = fs_err::read_to_string("/proc/filesystems").unwrap();
        if !kernel.contains("vfat") {
            let _ =
                writeln!(std::io::stderr(), "NOT TRIED: this kernel has no FAT, so nothing was put on such a drive");
            return;
        }
        return skip::skipped("a FAT drive needs root and dosfstools");
    }
    let four = 4_u64 << 30;
    let long = format!("[[artifact.file]]\npath = \"long.bin\"\nsize = {four}\nsha256 = \"{}\"\n", Sha256::of(b"x"));
    let lab = Lab::new(INVENTORY, &format!("{}{long}", manifest()));
    lab.write("home/plain/config.json", b"{}");
    let sparse = Command::new("truncate").args(["-s", &four.to_string()]).arg(lab.path("home/plain/long.bin")).status();
    assert!(sparse.unwrap().success());
    let folder = dir.path().join("mnt").display().to_string();
    let shown = lab.run(&["copy", "--to", &folder, "--dry-run"]);
    let unmounted = Command::new("umount").arg(&folder).status().unwrap();
    assert!(unmounted.success());
    assert!(shown.out.contains("stays here: tiny/long.bin: this drive is formatted with FAT"), "{}", shown.out);
}

#[test]
fn a_drive_without_links_carries_a_cache_with_links() {
    let Some(drive) = exfat::Exfat::make() else { return };
    assert!(!knows_links(&drive.path()));
    carries_a_cache(&drive.path());
}

/// As Windows leaves it: links could be made, and are no use to whoever plugs it in there.
#[test]
fn a_drive_of_ntfs_carries_a_cache_as_plain_files() {
    let Some(drive) = Stick::make() else { return };
    assert!(knows_links(&drive.path()));
    carries_a_cache(&drive.path());
    let entries = std::fs::read_dir(drive.path().join("blobs")).unwrap();
    assert!(entries.map(|entry| entry.unwrap().file_type().unwrap()).all(|kind| kind.is_file()));
}

fn knows_links(drive: &Path) -> bool {
    let link = drive.join("link");
    let made = Command::new("ln").args(["-s", "x"]).arg(&link).output().unwrap().status.success();
    if made {
        larder::fsio::remove_file(&link).unwrap();
    }
    made
}

/// A cache of two hops goes on the drive, from there to a machine that has nothing, and is loaded there.
fn carries_a_cache(drive: &Path) {
    let folder = drive.display().to_string();
    let weights = noise(9 * MIB);
    let (from, to) = (Lab::new(INVENTORY, &hand(&weights)), Lab::new(INVENTORY, &hand(&weights)));
    from.write("home/weights", &weights);
    two_hop_cache(&from.path("home"), &weights);
    let packed = from.run(&["copy", "--to", &folder, "--yes"]);
    assert_eq!(packed.code, 0, "{}{}", packed.out, packed.err);
    let readme = std::fs::read_to_string(drive.join("README.txt")).unwrap();
    assert!(readme.contains("larder copy --from") && readme.contains("sha256sum"), "{readme}");
    let sums = format!("sha256sum -b sha256-{0} | grep -q {0}", Sha256::of(&weights));
    assert!(Command::new("sh").args(["-c", &sums]).current_dir(drive.join("blobs")).status().unwrap().success());
    let again = from.run(&["copy", "--to", &folder, "--yes"]);
    assert!(again.code == 0 && again.out.contains("2 there already"), "{}{}", again.out, again.err);
    let taken = to.run(&["copy", "--from", &folder, "--yes"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    let snapshot = to.path(&format!("home/hub/models--acme--hand/snapshots/{COMMIT}"));
    assert!(std::fs::symlink_metadata(snapshot.join("model.safetensors")).unwrap().is_symlink());
    assert!(std::fs::read(snapshot.join("model.safetensors")).unwrap() == weights);
    for name in python::CLIENTS {
        let Some(python) = parts::part(&format!("{name}/bin/python")) else { return };
        let loaded = python::output(python::client(&python, &to.path("home")).args(["-c", LOAD]));
        assert!(loaded.contains(&format!("model.safetensors {}", Sha256::of(&weights))), "{name}: {loaded}");
    }
}
