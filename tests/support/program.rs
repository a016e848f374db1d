//! The program as a user starts it, on a lab of its own in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use larder::fsio::{self, WriteOptions};

/// An inventory that has a plain store, a cache and an Ollama store.
pub(crate) const INVENTORY: &str = "manifests = [\"manifests/*.toml\"]
machine = \"pc1\"

[stores]
plain = { layout = \"folder\", path = \"~/plain\" }
cache = { layout = \"hf-cache\", path = \"~/hub\" }
ollama = { layout = \"ollama\", path = \"~/ollama\" }

[profiles.all]
artifacts = [\"*\"]

[machines.pc1]
profile = \"all\"
";

/// A lab on disk: inventory, manifests, home and state.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Said {
    /// The exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Lab {
    /// A lab with this inventory, and this text in `manifests/lab.toml`.
    pub(crate) fn new(inventory: &str, manifest: &str) -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        lab.write("inventory.toml", inventory);
        lab.write("manifests/lab.toml", manifest);
        lab
    }

    /// A file or folder of the lab.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Puts bytes into a file of the lab.
    pub(crate) fn write(&self, relative: &str, bytes: impl AsRef<[u8]>) {
        fsio::write_atomic(&self.path(relative), bytes.as_ref(), &WriteOptions::default()).unwrap();
    }

    /// The program in the lab's folder, knowing nothing of the machine's own environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.dir.path());
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments), self.dir.path())
    }
}

/// The program with a home and a state below `home`.
pub(crate) fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.env_clear().env("HOME", home.join("home")).env("LARDER_STATE", home.join("state"));
    command
}

/// Runs `command` to its end; `lab` is called LAB in what it said.
pub(crate) fn said(command: &mut Command, lab: &Path) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(lab.to_str().unwrap(), "LAB");
    Said { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
}
