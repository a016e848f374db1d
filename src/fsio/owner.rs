//! Who owns what larder writes: the store's user, also when root runs it.

use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::process::Command;

use super::existing_ancestor;

/// A user and a group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A user name that this machine does not know.
#[derive(Debug, thiserror::Error)]
#[error("There is no user {name:?} on this machine")]
pub struct OwnerError {
    name: String,
}

/// The user and group this process runs as.
pub fn running_as() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

impl Owner {
    /// Looks a user up by name, through the system's own name service (so LDAP works too).
    pub fn named(name: &str) -> Result<Self, OwnerError> {
        let unknown = || OwnerError { name: name.to_owned() };
        let output = Command::new("getent").args(["passwd", name]).output().map_err(|_| unknown())?;
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut fields = line.trim_end().split(':').skip(2);
        let mut number = || fields.next()?.parse().ok();
        match (number(), number()) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err(unknown()),
        }
    }

    /// The user's name, or `user 998` where this machine has none for the number.
    pub fn name(self) -> String {
        let output = Command::new("getent").args(["passwd", &self.uid.to_string()]).output();
        let line = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        match line.split_once(':') {
            Some((name, _)) if !name.is_empty() => name.to_owned(),
            _ => format!("user {}", self.uid),
        }
    }

    /// Who owns `path`, or the closest existing folder above it.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs_err::metadata(existing_ancestor(path))?;
        Ok(Self { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// Whether this process can create files that belong to this owner.
    pub fn can_be_served(self) -> bool {
        let own = running_as();
        own.uid == 0 || own.uid == self.uid
    }

    /// Makes `path` belong to this owner; does nothing when this process is that user or not root.
    pub(super) fn apply(self, path: &Path) -> io::Result<()> {
        if running_as().uid != 0 || self == running_as() {
            return Ok(());
        }
        // A link that somebody put in the place meanwhile must not lead to a file of another user.
        lchown(path, Some(self.uid), Some(self.gid)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot change the owner of {}: {error}", path.display()))
        })
    }

    pub(super) fn apply_to_link(self, link: &Path) -> io::Result<()> {
        if running_as().uid != 0 || self == running_as() {
            return Ok(());
        }
        lchown(link, Some(self.uid), Some(self.gid))
    }
}
