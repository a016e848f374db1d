//! A larder for a machine that has none: sent by ssh, proven there, and used from then on.
//!
//! It goes into the cache of whoever logs in and touches nothing else. Where that machine has no inventory either, it
//! goes by this lab's, as the machine that it is there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Way, quoted};
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::papers::papers;
use crate::cli::ui::Ui;
use crate::digest::Sha256;
use crate::fsio;
use crate::size::Bytes;

/// Below the home of whoever logs in.
const PLACE: &str = ".cache/larder";
const HOW_TO_BUILD: &str = "build one that needs nothing of the machine with scripts/static in larder's source, on a \
                            machine of that kind, and send it with: --send-larder=FILE";

/// What is done for a machine without larder.
#[derive(Debug, Clone, Default, clap::Args)]
pub(in crate::cli) struct Sending {
    /// Send this program, or FILE, to a machine that has no larder, and use it there from then on
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub(in crate::cli::commands) send_larder: Option<Option<PathBuf>>,
}

/// What came of it.
pub(in crate::cli::commands) enum Provided {
    /// How the larder over there is started now.
    Larder(String),
    /// Somebody was asked, and wants none there.
    Unwanted,
    /// Nobody could be asked.
    Nobody,
}

/// Whether the shell on `machine` knows no larder, or one that its kind of machine cannot run.
pub(in crate::cli::commands) fn is_lacking(way: &Way, lab: &Lab, machine: &str) -> bool {
    let words = format!("{} --version", way.remote_larder);
    let answer = Shell { way, lab, machine }.command(&words).stdin(Stdio::null()).output();
    // Where ssh itself cannot be started, why it did not answer is known already.
    answer.is_ok_and(|answer| means_lacking(answer.status.code()))
}

/// Whether a shell that ended so found no program, or could not run it.
pub(in crate::cli::commands) fn means_lacking(code: Option<i32>) -> bool {
    matches!(code, Some(126 | 127))
}

/// Brings a larder to `machine`, if somebody wants that.
pub(in crate::cli::commands) fn provide(
    ui: &Ui,
    lab: &Lab,
    way: &Way,
    machine: &str,
    sending: &Sending,
) -> Result<Provided, CliError> {
    let program = Program::read(sending)?;
    let belongings = Belongings::of(lab)?;
    let shell = Shell { way, lab, machine };
    let seen = shell.look(&program, &belongings)?;
    if !seen.has_program {
        match (&sending.send_larder, ui.ask(&question(machine, &program))) {
            (Some(_), _) | (None, Some(true)) => {}
            (None, Some(false)) => return Ok(Provided::Unwanted),
            (None, None) => return Ok(Provided::Nobody),
        }
        program.must_suit(&seen, machine)?;
        ui.note(&format!("sending larder to {machine} ({})", Bytes(program.len)));
        shell.send(&program, &seen)?;
    }
    let place = format!("{}/{PLACE}/bin/{}", seen.home, program.name());
    shell.try_out(&place)?;
    let mut words = quoted(&place);
    if !seen.has_inventory {
        if !seen.has_belongings {
            shell.send_belongings(&belongings, &seen)?;
        }
        words +=
            &format!(" --inventory {}", quoted(&format!("{}/{PLACE}/{}/inventory.toml", seen.home, belongings.name)));
        if lab.inventory.machines.contains_key(machine) {
            words += &format!(" --machine {}", quoted(machine));
        }
    }
    Ok(Provided::Larder(words))
}

fn question(machine: &str, program: &Program) -> String {
    let size = Bytes(program.len);
    format!("There is no larder on {machine}. Send this one ({size}) into ~/{PLACE} there, and use it from now on?")
}

/// The program that is sent.
struct Program {
    file: PathBuf,
    len: u64,
    digest: Sha256,
    /// Whether it is the very program that runs here.
    is_this: bool,
}

impl Program {
    fn read(sending: &Sending) -> Result<Self, CliError> {
        let named = sending.send_larder.clone().flatten();
        let is_this = named.is_none();
        let file = named.map_or_else(std::env::current_exe, Ok)?;
        let hasher = crate::digest::ContentHasher::new();
        let (digests, len) = fsio::hash_file(&file, hasher)?;
        let digest = digests.sha256.ok_or_else(|| CliError::usage("the program was not hashed"))?;
        Ok(Self { file, len, digest, is_this })
    }

    fn name(&self) -> String {
        format!("larder-{}-{}", env!("CARGO_PKG_VERSION"), &self.digest.to_string()[..16])
    }

    /// Refuses to send this program to a machine of another kind.
    fn must_suit(&self, seen: &Seen, machine: &str) -> Result<(), CliError> {
        let (os, kind) = seen.kind.split_once(' ').unwrap_or_default();
        let is_same = os.eq_ignore_ascii_case(std::env::consts::OS) && kind == std::env::consts::ARCH;
        if !self.is_this || is_same {
            return Ok(());
        }
        let own = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        let reason = format!("{machine} is {}, and this larder runs on {own}", seen.kind);
        Err(CliError::failed(&std::io::Error::other(reason)).hint(HOW_TO_BUILD))
    }
}

/// This lab's inventory, manifests and lock, for a machine that has none.
struct Belongings {
    /// Changes whenever one of them does.
    name: String,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Belongings {
    fn of(lab: &Lab) -> Result<Self, CliError> {
        let files = papers(lab, true)?.into_files();
        let listed: String =
            files.iter().map(|(place, bytes)| format!("{} {}\n", place.display(), Sha256::of(bytes))).collect();
        Ok(Self { name: format!("lab-{}", &Sha256::of(listed.as_bytes()).to_string()[..16]), files })
    }
}

/// What a machine without larder is like.
#[derive(Debug, Default)]
struct Seen {
    /// What `uname -sm` says.
    kind: String,
    home: String,
    has_program: bool,
    has_inventory: bool,
    has_belongings: bool,
}

/// The shell of `machine`.
struct Shell<'a> {
    way: &'a Way,
    lab: &'a Lab,
    machine: &'a str,
}

impl Shell<'_> {
    fn command(&self, words: &str) -> Command {
        let mut command = self.way.to(self.lab, self.machine);
        command.push(OsString::from(words));
        let mut running = Command::new(command.remove(0));
        running.args(command);
        running
    }

    /// Runs `script` over there with `input`.
    fn run(&self, script: &str, input: Stdio) -> Result<Output, CliError> {
        let mut command = self.command(&format!("sh -c {}", quoted(script)));
        let running = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(running.wait_with_output()?)
    }

    fn look(&self, program: &Program, belongings: &Belongings) -> Result<Seen, CliError> {
        let script = format!(
            r#"printf 'larder-kind %s\n' "$(uname -sm)"; printf 'larder-home %s\n' "$HOME"
            p="$HOME/{PLACE}/bin/{}"; [ -x "$p" ] && printf 'larder-program %s\n' "$(sha256sum < "$p" | cut -c 1-64)"
            for i in "${{XDG_CONFIG_HOME:-$HOME/.config}}/larder/inventory.toml" /etc/larder/inventory.toml
            do [ -e "$i" ] && echo larder-inventory; done
            [ -d "$HOME/{PLACE}/{}" ] && echo larder-belongings
            exit 0"#,
            program.name(),
            belongings.name
        );
        let answer = self.run(&script, Stdio::null())?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        // What a profile prints on login is none of our lines.
        let told =
            |what: &str| text.lines().find_map(|line| line.strip_prefix(what)).map(|rest| rest.trim().to_owned());
        let (Some(kind), Some(home)) = (told("larder-kind "), told("larder-home ").filter(|home| !home.is_empty()))
        else {
            return Err(self.failure("its shell does not answer", &answer));
        };
        Ok(Seen {
            kind,
            home,
            has_program: told("larder-program ").is_some_and(|digest| digest == program.digest.to_string()),
            has_inventory: told("larder-inventory").is_some(),
            has_belongings: told("larder-belongings").is_some(),
        })
    }

    /// Visible only once all of it is there, proven and on the disk.
    fn send(&self, program: &Program, seen: &Seen) -> Result<(), CliError> {
        let folder = quoted(&format!("{}/{PLACE}/bin", seen.home));
        let (name, digest) = (program.name(), program.digest);
        let script = format!(
            r#"set -e; umask 077; mkdir -p {folder}; cd {folder}; part="{name}.$$.part"
            trap 'rm -f "$part"' EXIT; cat > "$part"
            [ "$(sha256sum < "$part" | cut -c 1-64)" = {digest} ] || {{ echo "it arrived damaged" >&2; exit 1; }}
            chmod 700 "$part"; sync "$part" 2>/dev/null || sync; mv -f "$part" {name}"#
        );
        let answer = self.run(&script, Stdio::from(fs_err::File::open(&program.file)?.into_file()))?;
        if answer.status.success() { Ok(()) } else { Err(self.failure("larder could not be sent", &answer)) }
    }

    fn send_belongings(&self, belongings: &Belongings, seen: &Seen) -> Result<(), CliError> {
        let folder = quoted(&format!("{}/{PLACE}", seen.home));
        let name = &belongings.name;
        let mut archive = tempfile::tempfile()?;
        pack(belongings, &mut archive)?;
        let script = format!(
            r#"set -e; umask 077; mkdir -p {folder}; cd {folder}; part="{name}.$$.part"
            trap 'rm -rf "$part"' EXIT; mkdir "$part"; tar -xf - -C "$part"
            mv -T "$part" {name} 2>/dev/null || [ -d {name} ]"#
        );
        let answer = self.run(&script, Stdio::from(archive))?;
        if answer.status.success() { Ok(()) } else { Err(self.failure("the inventory could not be sent", &answer)) }
    }

    /// Whether it runs there at all: another libc, another kind of processor.
    fn try_out(&self, place: &str) -> Result<(), CliError> {
        let answer = self.command(&format!("{} --version", quoted(place))).stdin(Stdio::null()).output()?;
        let is_larder = String::from_utf8_lossy(&answer.stdout).starts_with("larder ");
        if answer.status.success() && is_larder {
            return Ok(());
        }
        Err(self.failure("the larder that was sent does not run there", &answer).hint(HOW_TO_BUILD))
    }

    fn failure(&self, what: &str, answer: &Output) -> CliError {
        let said = String::from_utf8_lossy(&answer.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        CliError::failed(&std::io::Error::other(format!("{}: {what}: {last}", self.machine)))
    }
}

/// Writes the files as a tar archive, and goes back to its beginning.
fn pack(belongings: &Belongings, archive: &mut std::fs::File) -> std::io::Result<()> {
    use std::io::{Seek as _, Write as _};
    const BLOCK: usize = 512;
    for (place, bytes) in &belongings.files {
        archive.write_all(&header(place, bytes.len())?)?;
        archive.write_all(bytes)?;
        archive.write_all(&vec![0; bytes.len().next_multiple_of(BLOCK) - bytes.len()])?;
    }
    archive.write_all(&[0; 2 * BLOCK])?;
    archive.rewind()
}

/// The header of a plain file, as POSIX describes it (ustar).
fn header(place: &Path, len: usize) -> std::io::Result<[u8; 512]> {
    let mut header = [0; 512];
    let name = place.as_os_str().as_encoded_bytes();
    if name.len() > 100 {
        return Err(std::io::Error::other(format!("the name {} is too long to be sent", place.display())));
    }
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name);
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}
