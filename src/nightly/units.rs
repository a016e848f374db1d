//! The systemd units of a nightly check, as text.

use std::path::{Path, PathBuf};

/// The service's name.
pub const SERVICE: &str = "larder-verify.service";
/// The timer's name.
pub const TIMER: &str = "larder-verify.timer";
/// The service that compares every digest of the lock, now and then.
pub const FULL_SERVICE: &str = "larder-verify-full.service";
/// Its timer.
pub const FULL_TIMER: &str = "larder-verify-full.timer";
/// How units begin that larder wrote: others are not overwritten.
pub const WRITTEN_BY: &str = "# Written by `larder schedule`";

/// Whose manager runs the units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The user's own.
    User,
    /// The system's, as this user.
    System {
        /// The user's name.
        user: String,
    },
}

/// Whom the check may reach over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Only servers of this machine.
    Local,
    /// Anybody: the notify command may need it.
    Any,
}

/// Which of the two pairs of units it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// What runs every night.
    Night,
    /// What reads everything as a whole, now and then.
    Full,
}

impl Pair {
    /// The service's name.
    pub fn service(self) -> &'static str {
        match self {
            Pair::Night => SERVICE,
            Pair::Full => FULL_SERVICE,
        }
    }

    /// The timer's name.
    pub fn timer(self) -> &'static str {
        match self {
            Pair::Night => TIMER,
            Pair::Full => FULL_TIMER,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Pair::Night => "Verify the AI models of this machine",
            Pair::Full => "Verify every digest of the AI models of this machine",
        }
    }
}

/// What is run, when, and what it may do.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Which units these are.
    pub pair: Pair,
    /// Whose manager runs it.
    pub scope: Scope,
    /// The program and its arguments.
    pub verify: Vec<String>,
    /// Commands that follow in any case; what goes wrong in them is told and has no consequences.
    pub afterwards: Vec<Vec<String>>,
    /// When, as systemd's calendars are written.
    pub calendar: String,
    /// Where larder remembers what it measured.
    pub state: PathBuf,
    /// Other folders that are written to.
    pub writes: Vec<PathBuf>,
    /// Whom it may reach.
    pub network: Network,
}

/// What every unit may not do; none of it needs more than the system's own filters.
pub(super) const FILTERS: &str = "NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
";

/// What only the system's manager can forbid everywhere.
pub(super) const WALLS: &str = "ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
KeyringMode=private
";

/// The service's text.
pub fn service(schedule: &Schedule) -> String {
    let mut out = format!(
        "{}[Unit]\n\
         Description={}\n{}\n[Service]\nType=oneshot\n",
        heading(schedule, schedule.pair.service()),
        schedule.pair.description(),
        // Where both are due, one reads after the other.
        if schedule.pair == Pair::Full { format!("After={SERVICE}\n") } else { String::new() }
    );
    if let Scope::System { user } = &schedule.scope {
        out.push_str(&format!("User={user}\n"));
    }
    out.push_str(&format!("Environment={}\n", quoted(&format!("LARDER_STATE={}", schedule.state.display()))));
    out.push_str(&format!("ExecStart={}\n", command(&schedule.verify)));
    for after in &schedule.afterwards {
        out.push_str(&format!("ExecStopPost=-{}\n", command(after)));
    }
    out.push_str(
        "# 3, faults, is a failure: `systemctl --failed` shows it. 130, stopped, is none: the next run goes on.\n\
         SuccessExitStatus=130\nTimeoutStopSec=2min\n\
         # A night is as long as its disks are slow; --budget ends it earlier.\nTimeoutStartSec=infinity\n\
         # Everything else comes first.\nNice=19\nIOSchedulingClass=idle\nCPUWeight=10\nIOWeight=10\n\
         # What it may not do.\nUMask=0022\n",
    );
    out.push_str(FILTERS);
    if let Scope::System { user } = &schedule.scope {
        out.push_str(&walls(schedule, user));
    }
    out
}

fn heading(schedule: &Schedule, unit: &str) -> String {
    let user = if schedule.scope == Scope::User { "--user " } else { "" };
    format!("{WRITTEN_BY}; make changes with: systemctl {user}edit {unit}\n")
}

fn walls(schedule: &Schedule, user: &str) -> String {
    let mut out = WALLS.to_owned();
    // Root reads the files of others by this alone.
    let capabilities = if user == "root" { "CAP_DAC_READ_SEARCH" } else { "" };
    out.push_str(&format!("CapabilityBoundingSet={capabilities}\n"));
    let writes = std::iter::once(&schedule.state).chain(&schedule.writes);
    writes.for_each(|folder| out.push_str(&format!("ReadWritePaths={}\n", quoted_path(folder))));
    if schedule.network == Network::Local {
        out.push_str("IPAddressDeny=any\nIPAddressAllow=localhost\n");
    }
    out
}

/// The timer's text.
pub fn timer(schedule: &Schedule) -> String {
    format!(
        "{}[Unit]\n\
         Description={} when nobody needs it\n\n[Timer]\nOnCalendar={}\n\
         # A machine that was off catches up.\nPersistent=yes\n\n[Install]\nWantedBy=timers.target\n",
        heading(schedule, schedule.pair.timer()),
        schedule.pair.description(),
        schedule.calendar.replace('%', "%%")
    )
}

pub(super) fn command(words: &[String]) -> String {
    words.iter().map(|word| quoted(&word.replace('$', "$$"))).collect::<Vec<_>>().join(" ")
}

pub(super) fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// One word for systemd, whatever is in it.
pub(super) fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.=:,+@%$".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let words = ["/usr/bin/larder", "a b", "50%", "$HOME", "it's \"so\"\\", ""].map(str::to_owned);
        assert_eq!(command(&words), r#"/usr/bin/larder "a b" 50%% $$HOME "it's \"so\"\\" """#);
    }
}
