//! `larder schedule`: a nightly check by systemd, shown or installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::commands::after::duration;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand};
use crate::cli::limits::{self, Span};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit, env};
use crate::fsio::{self, Owner, WriteOptions};
use crate::nightly::{self, FULL_TIMER, Network, Pair, Probe, Schedule, Scope, WRITTEN_BY};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Whose systemd runs it: the user's own, or the machine's
    #[arg(long, value_enum, default_value_t)]
    scope: ScopeName,
    /// The user that it runs as, with --scope system [default: who asked]
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// When, every day
    #[arg(long, value_name = "HH:MM", default_value = "02:30", value_parser = hour)]
    at: String,
    /// When, as systemd writes it, such as "Sat 03:00"
    #[arg(long, value_name = "CALENDAR", conflicts_with = "at")]
    calendar: Option<String>,
    #[command(flatten)]
    night: Night,
    /// Skip the night, or end it, while this says that the machine is needed: a server's status, or a command that succeeds then
    #[arg(long, value_name = "URL|COMMAND")]
    unless_busy: Option<Probe>,
    /// Wait so long for the machine before skipping, such as 2h
    #[arg(long, value_name = "TIME", requires = "unless_busy")]
    postpone: Option<String>,
    /// Write metrics here after every run, for the node exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    /// Write a page here after every run
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Tell this bucket what the machine has after every run: `larder push BUCKET --report`, with keys from a profile
    #[arg(long, value_name = "BUCKET")]
    push: Option<String>,
    /// Write the units to where systemd reads them, and start the timer
    #[arg(long)]
    install: bool,
    /// Write the units into this folder and start nothing
    #[arg(long, value_name = "DIR", conflicts_with = "install")]
    folder: Option<PathBuf>,
    /// Show what --install or --folder would do, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is verified each night.
#[derive(Debug, clap::Args)]
struct Night {
    /// Only names, links, sizes, headers and shard indexes
    #[arg(long, conflicts_with_all = ["full", "budget", "max_age", "max_rate"])]
    quick: bool,
    /// Compare every digest of the lock each time, also where known chunk digests would do
    #[arg(long)]
    full: bool,
    /// End each night after this time or so many bytes, such as 2h or 200GB; the next one goes on from there
    #[arg(long, value_name = "LIMIT", value_parser = a_budget)]
    budget: Option<String>,
    /// Leave out what was read within this time [default: 7d, and with --full nothing]
    #[arg(long, value_name = "TIME", value_parser = an_age)]
    max_age: Option<String>,
    /// Compare every digest of the lock so often, by units of their own: 7d, 30d, 60d, 90d, 180d or 365d
    #[arg(long, value_name = "TIME", value_parser = an_interval, conflicts_with = "full")]
    full_every: Option<&'static str>,
    /// Read no faster than this, such as 200MB/s
    #[arg(long, value_name = "RATE", value_parser = a_rate)]
    max_rate: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ScopeName {
    #[default]
    User,
    System,
}

#[derive(Serialize)]
struct Scheduled<'a> {
    units: Vec<UnitFile<'a>>,
    commands: Vec<String>,
    written: bool,
}

#[derive(Serialize)]
struct UnitFile<'a> {
    name: &'a str,
    path: PathBuf,
    text: String,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let schedule = schedule(&lab, common, args)?;
    check_calendar(&schedule.calendar)?;
    let folder =
        args.folder.as_ref().map_or_else(|| units_folder(&schedule.scope, &lab.home), |dir| expand(dir, &lab.home));
    let full = full(&lab, common, args, &schedule)?;
    let all: Vec<&Schedule> = std::iter::once(&schedule).chain(&full).collect();
    let texts = all.iter().flat_map(|schedule| {
        let service = (schedule.pair.service(), nightly::service(schedule));
        [service, (schedule.pair.timer(), nightly::timer(schedule))]
    });
    let units: Vec<UnitFile<'_>> = texts.map(|(name, text)| UnitFile { name, path: folder.join(name), text }).collect();
    let timers: Vec<&str> = all.iter().map(|schedule| schedule.pair.timer()).collect();
    let commands = if args.install { start_commands(&schedule.scope, &timers) } else { Vec::new() };
    let writes = (args.install || args.folder.is_some()) && !args.dry_run;
    show(ui, &units, &commands, args);
    if writes {
        write(ui, &units, &schedule)?;
        commands.iter().try_for_each(|command| systemctl(command))?;
        tell_what_follows(ui, &lab, &schedule, args);
        if full.is_none() && folder.join(FULL_TIMER).exists() {
            tell_what_stays(ui, &schedule.scope);
        }
    }
    let commands = commands.iter().map(|words| words.join(" ")).collect();
    ui.object("schedule", &Scheduled { units, commands, written: writes });
    Ok(Exit::InOrder)
}

fn show(ui: &Ui, units: &[UnitFile<'_>], commands: &[Vec<String>], args: &Args) {
    let is_asked = args.install || args.folder.is_some();
    if is_asked && !args.dry_run {
        return;
    }
    for unit in units {
        ui.text(&format!("# {}\n{}\n", unit.path.display(), unit.text));
    }
    commands.iter().for_each(|words| ui.text(&format!("$ {}\n", words.join(" "))));
    ui.note(if is_asked {
        "Nothing has been changed."
    } else {
        "Nothing has been changed. Install it with: larder schedule --install, and what else was given"
    });
}

fn schedule(lab: &Lab, common: &Common, args: &Args) -> Result<Schedule, CliError> {
    if args.user.is_some() && args.scope == ScopeName::User {
        return Err(CliError::usage("--as is for --scope system: a user's own systemd runs nothing as others"));
    }
    if let Some(text) = &args.postpone {
        duration(text).map_err(|hint| CliError::usage(format!("--postpone {text:?} is no time")).hint(hint))?;
    }
    let scope = match args.scope {
        ScopeName::User => Scope::User,
        ScopeName::System => Scope::System { user: user(args, &lab.home)? },
    };
    let base = base(lab, common)?;
    let with = |words: Vec<String>| [base.clone(), words].concat();
    let verify = [depth(&args.night), manners(args)].concat();
    let reports = [("prometheus", &args.prometheus), ("html", &args.html)];
    let reports: Vec<(&str, PathBuf)> = reports
        .into_iter()
        .filter_map(|(format, file)| Some((format, file.as_ref()?)))
        .map(|(format, file)| Ok((format, PathBuf::from(absolute(&expand(file, &lab.home))?))))
        .collect::<Result<_, CliError>>()?;
    let report = |(format, file): &(&str, PathBuf)| {
        with(
            ["report", "--format", format, "--out"]
                .map(str::to_owned)
                .into_iter()
                .chain([file.display().to_string()])
                .collect(),
        )
    };
    Ok(Schedule {
        pair: Pair::Night,
        verify: with(verify),
        afterwards: reports.iter().map(report).chain(telling(lab, args)?.map(with)).collect(),
        calendar: args.calendar.clone().unwrap_or_else(|| format!("*-*-* {}:00", args.at)),
        state: PathBuf::from(absolute(&lab.state)?),
        writes: reports.iter().filter_map(|(_, file)| file.parent().map(Path::to_owned)).collect(),
        network: network(lab, args),
        scope,
    })
}

/// The units that compare every digest now and then, where they are asked for: no budget ends them, because the next
/// one comes late.
fn full(lab: &Lab, common: &Common, args: &Args, night: &Schedule) -> Result<Option<Schedule>, CliError> {
    let Some(days) = args.night.full_every else { return Ok(None) };
    let mut verify = base(lab, common)?;
    verify.extend(["verify", "--full"].map(str::to_owned));
    verify.extend(args.night.max_rate.iter().flat_map(|rate| ["--max-rate".to_owned(), rate.clone()]));
    verify.extend(manners(args));
    let calendar = format!("{days} {}:00", args.at);
    Ok(Some(Schedule { pair: Pair::Full, verify, calendar, ..night.clone() }))
}

/// When a night is left to others.
fn manners(args: &Args) -> Vec<String> {
    let Some(probe) = &args.unless_busy else { return Vec::new() };
    let mut words = vec!["--unless-busy".to_owned(), probe.to_string()];
    words.extend(args.postpone.iter().flat_map(|time| ["--postpone".to_owned(), time.clone()]));
    words
}

/// What is verified each night: by default all chunks that were not compared within a week.
fn depth(args: &Night) -> Vec<String> {
    let mut words = vec!["verify".to_owned()];
    if args.quick {
        words.push("--quick".to_owned());
        return words;
    }
    if args.full {
        words.push("--full".to_owned());
    }
    let week = (!args.full).then(|| "7d".to_owned());
    let max_age = args.max_age.clone().or(week);
    for (option, value) in
        [("--max-age", max_age), ("--budget", args.budget.clone()), ("--max-rate", args.max_rate.clone())]
    {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    words
}

fn a_budget(text: &str) -> Result<String, String> {
    limits::budget(text).map(|_| text.to_owned())
}

fn an_age(text: &str) -> Result<String, String> {
    text.parse::<Span>().map(|_| text.to_owned())
}

/// The days of a calendar that come so often. systemd remembers when a calendar was due, over restarts too, but not how
/// long ago something ran.
fn an_interval(text: &str) -> Result<&'static str, String> {
    let days = match text {
        "7d" => "Sun *-*-*",
        "30d" => "*-*-01",
        "60d" => "*-01/2-01",
        "90d" => "*-01/3-01",
        "180d" => "*-01/6-01",
        "365d" => "*-01-01",
        _ => return Err("write 7d, 30d, 60d, 90d, 180d or 365d".to_owned()),
    };
    Ok(days)
}

fn a_rate(text: &str) -> Result<String, String> {
    limits::rate(text).map(|_| text.to_owned())
}

/// The command that tells a bucket, where one is named.
fn telling(lab: &Lab, args: &Args) -> Result<Option<Vec<String>>, CliError> {
    let Some(name) = &args.push else { return Ok(None) };
    let bucket = super::push::configured(lab, Some(name))?;
    Ok(Some(vec!["push".to_owned(), bucket.name, "--report".to_owned()]))
}

/// What every command of the units begins with: the program, and the lab that it is asked about now.
pub(super) fn base(lab: &Lab, common: &Common) -> Result<Vec<String>, CliError> {
    let program = absolute(&std::env::current_exe()?)?;
    let mut base = vec![program, "--quiet".to_owned(), "--inventory".to_owned(), absolute(&lab.inventory_path)?];
    if lab.inventory.machines.contains_key(&lab.machine) {
        base.extend(["--machine".to_owned(), lab.machine.clone()]);
    }
    base.extend(common.only.iter().flat_map(|only| ["--only".to_owned(), only.clone()]));
    Ok(base)
}

/// The user of the system's unit: as whom larder was asked to run it, or who owns the home it was asked from.
fn user(args: &Args, home: &Path) -> Result<String, CliError> {
    match &args.user {
        Some(name) => Owner::named(name).map(|_| name.clone()).map_err(|error| CliError::usage(error.to_string())),
        None => Ok(Owner::of(home)?.name()),
    }
}

/// Only this machine, unless the admin's command or a server elsewhere needs more.
fn network(lab: &Lab, args: &Args) -> Network {
    let is_local = |url: &url::Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let probe = match &args.unless_busy {
        Some(Probe::Server(url)) => is_local(url),
        Some(Probe::Command(_)) => false,
        None => true,
    };
    let stores = lab.stores.iter().filter_map(|(_, open)| open.config.api.as_ref()).all(is_local);
    if lab.inventory.notify.is_none() && args.push.is_none() && probe && stores { Network::Local } else { Network::Any }
}

pub(super) fn absolute(path: &Path) -> Result<String, CliError> {
    let path = std::path::absolute(path)?;
    path.to_str().filter(|text| !text.chars().any(char::is_control)).map(str::to_owned).ok_or_else(|| {
        CliError::usage(format!("{} cannot be written into a unit file", path.display())).hint("use a path of letters")
    })
}

fn units_folder(scope: &Scope, home: &Path) -> PathBuf {
    match scope {
        Scope::User => env::config_dir(home).join("systemd/user"),
        Scope::System { .. } => PathBuf::from("/etc/systemd/system"),
    }
}

fn start_commands(scope: &Scope, timers: &[&str]) -> Vec<Vec<String>> {
    let systemctl = |words: &[&str]| {
        let user = (*scope == Scope::User).then_some("--user");
        ["systemctl"].into_iter().chain(user).chain(words.iter().copied()).map(str::to_owned).collect()
    };
    vec![systemctl(&["daemon-reload"]), systemctl(&[&["enable", "--now"], timers].concat())]
}

fn write(ui: &Ui, units: &[UnitFile<'_>], schedule: &Schedule) -> Result<(), CliError> {
    for unit in units {
        let is_foreign = |text: String| !text.starts_with(WRITTEN_BY);
        if fs_err::read_to_string(&unit.path).is_ok_and(is_foreign) {
            return Err(CliError::usage(format!("{} exists and was not written by larder", unit.path.display()))
                .hint("move it away, or change it by hand"));
        }
    }
    let owner = match &schedule.scope {
        Scope::User => None,
        Scope::System { user } => Owner::named(user).ok(),
    };
    // A folder that is to be writable must be there when the service starts.
    fsio::create_dir_all(&schedule.state, owner)?;
    for unit in units {
        let options = WriteOptions { mode: Some(0o644), ..WriteOptions::default() };
        fsio::write_atomic(&unit.path, unit.text.as_bytes(), &options)
            .map_err(|error| CliError::failed(&error).context(format!("{} cannot be written", unit.path.display())))?;
        ui.note(&format!("written: {}", unit.path.display()));
    }
    Ok(())
}

fn systemctl(words: &[String]) -> Result<(), CliError> {
    let output = Command::new(&words[0]).args(&words[1..]).output().map_err(|error| {
        CliError::failed(&error)
            .context(words.join(" "))
            .hint("is systemd running here? --folder DIR only writes the units")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CliError::failed(&std::io::Error::other(said))
        .context(format!("{} failed", words.join(" ")))
        .hint("the units are written; start them by hand, or look with: systemctl status larder-verify.timer"))
}

fn tell_what_follows(ui: &Ui, lab: &Lab, schedule: &Schedule, args: &Args) {
    if args.install && schedule.scope == Scope::User {
        ui.note("it runs while you are logged in; to let it run always: loginctl enable-linger");
    }
    if lab.inventory.notify.is_some() {
        ui.note("the notify command runs within the unit's limits: it may use the network, but gain no rights (no sendmail)");
    }
}

/// Units of an earlier call are nobody's to remove without being asked.
fn tell_what_stays(ui: &Ui, scope: &Scope) {
    let user = if *scope == Scope::User { "--user " } else { "" };
    ui.note(&format!("{FULL_TIMER} of an earlier call stays; to end it: systemctl {user}disable --now {FULL_TIMER}"));
}

/// systemd knows best what a calendar is; where it is not installed, only what would break the file is refused.
fn check_calendar(calendar: &str) -> Result<(), CliError> {
    let wrong = || {
        CliError::usage(format!("{calendar:?} is not a calendar of systemd"))
            .hint("write for example \"Sat 03:00\", or see: man systemd.time")
    };
    if calendar.trim().is_empty() || calendar.chars().any(char::is_control) {
        return Err(wrong());
    }
    match Command::new("systemd-analyze").args(["calendar", "--iterations=0", calendar]).output() {
        Ok(output) if !output.status.success() => Err(wrong()),
        _ => Ok(()),
    }
}

/// `2:05` and `02:05` are five past two.
fn hour(text: &str) -> Result<String, String> {
    let parsed = text.split_once(':').and_then(|(hour, minute)| {
        let two = |part: &str| part.parse::<u8>().ok().filter(|_| (1..=2).contains(&part.len()));
        Some((two(hour).filter(|hour| *hour < 24)?, two(minute).filter(|minute| *minute < 60)?))
    });
    let (hour, minute) = parsed.ok_or("write hours and minutes, such as 02:30")?;
    Ok(format!("{hour:02}:{minute:02}"))
}
