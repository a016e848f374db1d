//! Copies over ssh: the user's own keys, configuration and jump hosts; nothing listens on any network.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::{Args, carry_out, take_only_from_peer};
use crate::cli::commands::apply::agreed;
use crate::cli::commands::serve;
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::serve::{Guests, Traffic, answer_at, router};
use crate::sources::Tunnel;

/// Logins at the same time: each has its own cipher and so its own core, and servers refuse many at once.
const CONNECTIONS: usize = 4;

/// Takes from `machine` what this one lacks.
pub(super) fn take(ui: &Ui, common: &Common, args: &Args, machine: &str) -> Result<Exit, CliError> {
    let mut lab = Lab::read(ui, common)?.within(args.locality);
    let mut command = args.way.to(&lab, machine);
    command.push(format!("{} serve --stdio", args.way.remote_larder).into());
    let runtime = tokio::runtime::Runtime::new()?;
    let tunnel = {
        let _within = runtime.enter();
        Tunnel::open(command)?
    };
    take_only_from_peer(&mut lab, args, machine, tunnel.socket());
    lab.inventory.sources.parallel = lab.inventory.sources.parallel.min(CONNECTIONS);
    let greeting = lab.sources(common, &args.limits)?;
    runtime.block_on(greeting.peers().holdings(machine)).map_err(|error| {
        let said = tunnel.last_words();
        let failed = if said.is_empty() { CliError::failed(&error) } else { CliError::failed(&error).context(said) };
        failed
            .hint(format!("larder must be there: try {} {machine} {} --version", args.way.ssh, args.way.remote_larder))
    })?;
    carry_out(ui, common, args, &lab)
}

/// Has `machine` take from here what it lacks.
pub(super) fn give(ui: &Ui, common: &Common, args: &Args, machine: &str) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::Builder::new().prefix("larder-").permissions(PermissionsExt::from_mode(0o700)).tempdir()?;
    let here = folder.path().join("serve");
    {
        let _within = runtime.enter();
        let index = serve::index(&lab)?;
        let router = router(index, Guests::default(), Arc::new(Traffic::default()));
        runtime.spawn(answer_at(UnixListener::bind(&here)?, router));
    }
    let over_there = Remote { args, common, lab: &lab, machine, here: &here, name: folder.path() };
    if !args.yes {
        let shown = over_there.run("--dry-run")?;
        if args.dry_run || !shown.success() {
            return exit(args, machine, shown);
        }
        if !agreed(ui, "copy")? {
            return Ok(Exit::InOrder);
        }
    }
    exit(args, machine, over_there.run("--yes")?)
}

/// A larder on the other machine that takes from here.
struct Remote<'a> {
    args: &'a Args,
    common: &'a Common,
    lab: &'a Lab,
    machine: &'a str,
    here: &'a Path,
    name: &'a Path,
}

impl Remote<'_> {
    fn run(&self, how: &str) -> Result<ExitStatus, CliError> {
        // The same random name as on this machine: it is ours on that one too.
        let name = self.name.file_name().unwrap_or_default().to_string_lossy();
        let there = format!("/tmp/{name}-{}.socket", how.trim_start_matches('-'));
        let mut words = vec![self.args.way.remote_larder.clone(), "copy".to_owned(), how.to_owned()];
        words.extend(["--from-socket".to_owned(), there.clone()]);
        words.extend(self.common.only.iter().flat_map(|only| ["--only".to_owned(), quoted(only)]));
        words.extend(self.common.json.then(|| "--json".to_owned()));
        words.extend(self.common.quiet.then(|| "--quiet".to_owned()));
        let mut command = self.args.way.to(self.lab, self.machine);
        let forward = OsString::from(format!("{there}:{}", self.here.display()));
        // Before the destination, which is the last word so far.
        let at = command.len() - 2;
        command.splice(at..at, ["-oExitOnForwardFailure=yes".into(), "-R".into(), forward]);
        command.push(words.join(" ").into());
        let program = command.remove(0);
        let status = Command::new(&program).args(command).status();
        status
            .map_err(|error| CliError::from(error).context(format!("{} cannot be started", program.to_string_lossy())))
    }
}

/// A word that the remote shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The other larder's exit code is ours; ssh's own says that nothing was done.
fn exit(args: &Args, machine: &str, status: ExitStatus) -> Result<Exit, CliError> {
    match status.code() {
        Some(0) => Ok(Exit::InOrder),
        Some(3) => Ok(Exit::Differences),
        Some(4) => Ok(Exit::Partly),
        Some(130) => Ok(Exit::Interrupted),
        Some(127) => Err(CliError::failed(&std::io::Error::other(format!("there is no larder on {machine}"))).hint(
            format!("put the program there, or name it with --remote-larder; it is started by: {}", args.way.ssh),
        )),
        Some(1 | 2) => Ok(Exit::Failed),
        _ => Err(CliError::failed(&std::io::Error::other(format!("the connection to {machine} ended early")))
            .hint("what arrived stays; running it again continues from there")),
    }
}
