//! Users and groups of the machine, and what the permission bits let them do.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::doctor::Machine;

/// One user, with the groups it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    groups: Vec<u32>,
    pub(super) home: PathBuf,
}

impl Account {
    /// The user called `name`, or with that number, as `/etc/passwd` and `/etc/group` have it.
    pub(super) fn find(machine: Machine<'_>, name: &str) -> Option<Self> {
        let passwd = machine.read("/etc/passwd")?;
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let user = fields.into_iter().find(|fields| fields.len() > 5 && (fields[0] == name || fields[2] == name))?;
        let own = user[3].parse().ok()?;
        let groups = machine.read("/etc/group").unwrap_or_default();
        let has = |fields: &Vec<&str>| fields.len() > 3 && fields[3].split(',').any(|member| member == user[0]);
        let others = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(has);
        let groups = others.filter_map(|fields| fields[2].parse().ok()).chain([own]).collect();
        Some(Self { name: user[0].to_owned(), uid: user[2].parse().ok()?, groups, home: PathBuf::from(user[5]) })
    }

    /// Whether the bits let the user read a file, or list and enter a folder; access lists are not looked at.
    pub(super) fn may_read(&self, metadata: &std::fs::Metadata) -> bool {
        let wanted = if metadata.is_dir() { 0o5 } else { 0o4 };
        self.has(metadata, wanted)
    }

    /// The first folder on the way to `path` that the user may not pass.
    pub(super) fn stopped_at(&self, path: &Path) -> Option<PathBuf> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        let is_closed = |folder: &&Path| fs_err::metadata(folder).is_ok_and(|metadata| !self.has(&metadata, 0o1));
        above.into_iter().find(is_closed).map(Path::to_owned)
    }

    fn has(&self, metadata: &std::fs::Metadata, wanted: u32) -> bool {
        let mode = metadata.mode();
        let bits = if metadata.uid() == self.uid {
            mode >> 6
        } else if self.groups.contains(&metadata.gid()) {
            mode >> 3
        } else {
            mode
        };
        self.uid == 0 || bits & wanted == wanted
    }
}
