//! Copies over ssh: the user's own keys, configuration and jump hosts; nothing listens on any network.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::runtime::Runtime;

use super::{Args, by_sftp, carry_out, nothing_to_take, take_only_from_peer};
use crate::cli::commands::apply::agreed;
use crate::cli::commands::remote::install::{self, Provided};
use crate::cli::commands::remote::{Way, quoted};
use crate::cli::commands::serve;
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::serve::{Guests, Token, Traffic, answer_at, router};
use crate::sources::{SourceError, Tunnel};

/// Logins at the same time: each has its own cipher and so its own core, and servers refuse many at once.
pub(super) const CONNECTIONS: usize = 4;

/// Takes from `machine` what this one lacks.
pub(super) fn take(ui: &Ui, common: &Common, args: &Args, machine: &str) -> Result<Exit, CliError> {
    if args.sftp {
        return by_sftp::take(ui, common, args, machine);
    }
    let read = || Ok::<_, CliError>(Lab::read(ui, common)?.within(args.locality));
    let lab = read()?;
    if let Some(settled) = nothing_to_take(ui, common, args, &lab)? {
        ui.note(&format!("{machine} was not asked: all that is wanted is here, and was read"));
        return Ok(settled);
    }
    let runtime = Runtime::new()?;
    let mut way = args.way.clone();
    let refused = match Taking::begin(lab, common, args, (&way, machine), &runtime)? {
        Ok(taking) => return taking.carry_out(ui, common, args),
        Err(refused) => refused,
    };
    let lab = read()?;
    if !install::is_lacking(&way, &lab, machine) {
        return Err(refused);
    }
    match install::provide(ui, &lab, &way, machine, &args.sending)? {
        Provided::Larder(words) => way.remote_larder = words,
        Provided::Unwanted => return by_sftp::take(ui, common, args, machine),
        Provided::Nobody => return Err(refused),
    }
    Taking::begin(lab, common, args, (&way, machine), &runtime)??.carry_out(ui, common, args)
}

/// A larder on another machine that answers.
struct Taking {
    lab: Lab,
    _tunnel: Tunnel,
}

impl Taking {
    /// Starts a larder on `machine` for `lab` to take from; the inner error says why it does not answer.
    fn begin(
        mut lab: Lab,
        common: &Common,
        args: &Args,
        (way, machine): (&Way, &str),
        runtime: &Runtime,
    ) -> Result<Result<Self, CliError>, CliError> {
        let mut command = way.to_move(&lab, machine);
        command.push(format!("{} serve --stdio", way.remote_larder).into());
        let tunnel = {
            let _within = runtime.enter();
            Tunnel::open(command)?
        };
        take_only_from_peer(&mut lab, args, machine, vec![tunnel.socket().to_owned()], None);
        cap_logins(&mut lab);
        let greeting = lab.sources(common, &args.limits)?;
        Ok(match runtime.block_on(greeting.peers().holdings(machine)) {
            Ok(_) => Ok(Self { lab, _tunnel: tunnel }),
            Err(error) => Err(unanswered(&error, &tunnel.last_words(), way, machine)),
        })
    }

    fn carry_out(self, ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
        carry_out(ui, common, args, &self.lab)
    }
}

/// Files at the same time, and ranges of one large file: every one of them is a login.
pub(super) fn cap_logins(lab: &mut Lab) {
    let sources = &mut lab.inventory.sources;
    sources.parallel = sources.parallel.min(CONNECTIONS);
    sources.connections = sources.connections.min(CONNECTIONS);
}

fn unanswered(error: &SourceError, said: &str, way: &Way, machine: &str) -> CliError {
    let failed = if said.is_empty() { CliError::failed(error) } else { CliError::failed(error).context(said) };
    failed.hint(format!(
        "larder must be there: try {} {machine} {} --version; without one, --send-larder sends this one, and --sftp does \
         without",
        way.ssh, way.remote_larder
    ))
}

/// Has `machine` take from here what it lacks.
pub(super) fn give(ui: &Ui, common: &Common, args: &Args, machine: &str) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let runtime = Runtime::new()?;
    let folder = tempfile::Builder::new().prefix("larder-").permissions(PermissionsExt::from_mode(0o700)).tempdir()?;
    let here = folder.path().join("serve");
    let secret = secret();
    {
        let _within = runtime.enter();
        let index = serve::index(&lab)?;
        let guests = Guests { token: Token::new(&secret), ..Guests::default() };
        let router = router(index, guests, Arc::new(Traffic::default()));
        runtime.spawn(answer_at(UnixListener::bind(&here)?, router));
    }
    let (way, ssh) = (args.way.clone(), args.way.to_move(&lab, machine));
    let mut there = Remote { args, common, here: &here, secret: &secret, way, ssh };
    let first = if args.yes { "--yes" } else { "--dry-run" };
    let mut ended = there.run(first)?;
    if install::means_lacking(ended.code())
        && let Provided::Larder(words) = install::provide(ui, &lab, &args.way, machine, &args.sending)?
    {
        there.way.remote_larder = words;
        ended = there.run(first)?;
    }
    if args.yes || args.dry_run || !ended.success() {
        if let Some(again) = args.again().filter(|_| args.dry_run && ended.success()) {
            ui.note(&format!("Carry it out with: {again}"));
        }
        return exit(args, machine, ended);
    }
    if !agreed(ui, "copy")? {
        return Ok(Exit::InOrder);
    }
    exit(args, machine, there.run("--yes")?)
}

/// What only the larder that is started over there learns, by its standard input.
fn secret() -> String {
    let mut bytes = [0; 32];
    let filled = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system has random bytes: without them no key of ssh could be used either");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A larder on the other machine that takes from here.
struct Remote<'a> {
    args: &'a Args,
    common: &'a Common,
    /// The socket on this machine.
    here: &'a Path,
    secret: &'a str,
    way: Way,
    /// What every login begins with.
    ssh: Vec<OsString>,
}

impl Remote<'_> {
    /// Has the other machine do it; what is large comes to it over several logins, as many as there may be.
    fn run(&self, how: &str) -> Result<ExitStatus, CliError> {
        let main = self.socket_there(how.trim_start_matches('-'));
        let logins = if how == "--yes" { 1..CONNECTIONS } else { 0..0 };
        let more = Login::begin_all(logins.filter_map(|number| {
            let there = self.socket_there(&number.to_string());
            // Who is asked for a password is asked once, and a machine that is away is waited for by the main login only.
            let mut command = self.forwarding(&there, &["-oBatchMode=yes", "-oConnectTimeout=15"]);
            command.push(Login::script(&there).into());
            Login::begin(command, there)
        }));
        let sockets = std::iter::once(main.as_str()).chain(more.iter().map(|login| login.there.as_str()));
        let mut command = self.forwarding(&main, &[]);
        command.push(self.script(how, &sockets.collect::<Vec<_>>()).into());
        let program = command.remove(0);
        let started = Command::new(&program).args(command).stdin(Stdio::piped()).spawn();
        let mut running = started.map_err(|error| {
            CliError::from(error).context(format!("{} cannot be started", program.to_string_lossy()))
        })?;
        if let Some(mut stdin) = running.stdin.take() {
            // Who ends before it listens says why on its standard error.
            let _ = writeln!(stdin, "{}", self.secret);
        }
        Ok(running.wait()?)
    }

    /// A place on the other machine. The same random name as on this one: it is ours there too.
    fn socket_there(&self, which: &str) -> String {
        let folder = self.here.parent().unwrap_or(self.here);
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        format!("/tmp/{name}-{which}.socket")
    }

    /// ssh to the other machine, where `there` leads to the socket here; the remote command is still to be added.
    fn forwarding(&self, there: &str, options: &[&str]) -> Vec<OsString> {
        let mut command = self.ssh.clone();
        let forward = OsString::from(format!("{there}:{}", self.here.display()));
        let options =
            options.iter().map(OsString::from).chain(["-oExitOnForwardFailure=yes".into(), "-R".into(), forward]);
        // Before the destination, which is the last word so far.
        let at = command.len() - 2;
        command.splice(at..at, options.collect::<Vec<_>>());
        command
    }

    /// What the other machine's shell does.
    ///
    /// sshd makes the socket for the user who logs in. The larder there may run as the user who owns the store, so
    /// everybody there may connect; who does not know the secret gets nothing.
    fn script(&self, how: &str, sockets: &[&str]) -> String {
        let mut words = vec![self.way.remote_larder.clone(), "copy".to_owned(), how.to_owned()];
        words.extend(sockets.iter().flat_map(|socket| ["--from-socket".to_owned(), (*socket).to_owned()]));
        words.extend(self.common.only.iter().flat_map(|only| ["--only".to_owned(), quoted(only)]));
        words.extend(self.common.json.then(|| "--json".to_owned()));
        words.extend(self.common.quiet.then(|| "--quiet".to_owned()));
        words.extend(self.args.max_rate.map(|rate| format!("--max-rate {}B/s", rate.0)));
        words.extend(self.args.limits.max_download.map(|limit| format!("--max-download {}", limit.0)));
        let (larder, socket) = (words.join(" "), sockets[0]);
        let script = format!("chmod 0666 {socket} && {larder}; code=$?; rm -f {socket}; exit $code");
        format!("sh -c {}", quoted(&script))
    }
}

/// One more login, which does nothing but lead from a socket on the other machine to the one here. Ended when dropped.
struct Login {
    there: String,
    running: Child,
}

impl Login {
    fn begin(mut command: Vec<OsString>, there: String) -> Option<Self> {
        let program = command.remove(0);
        let (input, output) = (Stdio::piped(), Stdio::piped());
        let started = Command::new(program).args(command).stdin(input).stdout(output).stderr(Stdio::null()).spawn();
        Some(Self { there, running: started.ok()? })
    }

    /// Those of `logins` that lead somewhere: servers may refuse several at once, and then fewer do it.
    fn begin_all(logins: impl Iterator<Item = Self>) -> Vec<Self> {
        let mut begun: Vec<Self> = logins.collect();
        begun.retain_mut(|login| {
            let mut said = [0; 1];
            login.running.stdout.as_mut().is_some_and(|said_by| said_by.read_exact(&mut said).is_ok())
        });
        begun
    }

    /// Says that the socket is there, and stays until it is told to go.
    fn script(there: &str) -> String {
        format!("sh -c {}", quoted(&format!("chmod 0666 {there} && echo && cat >/dev/null; rm -f {there}")))
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        // The end of its input ends it over there, where it removes its socket.
        drop(self.running.stdin.take());
        let _ = self.running.wait();
    }
}

/// The other larder's exit code is ours; ssh's own says that nothing was done.
fn exit(args: &Args, machine: &str, status: ExitStatus) -> Result<Exit, CliError> {
    match status.code() {
        Some(0) => Ok(Exit::InOrder),
        Some(3) => Ok(Exit::Differences),
        Some(4) => Ok(Exit::Partly),
        Some(130) => Ok(Exit::Interrupted),
        Some(126 | 127) => Err(CliError::failed(&std::io::Error::other(format!("there is no larder on {machine}")))
            .hint(format!(
                "send this one with --send-larder, or name the one there with --remote-larder; it is started by: {}",
                args.way.ssh
            ))),
        Some(1 | 2) => Ok(Exit::Failed),
        // ssh tells on its own which of the two it was, and does not say so by its code.
        _ => Err(CliError::failed(&std::io::Error::other(format!(
            "{machine} could not be reached, or the connection to it was lost"
        )))
        .hint(format!(
            "see what ssh said above; try: {} {machine} true; what has arrived stays, and running it again continues from there",
            args.way.ssh
        ))),
    }
}
