//! A machine that wants one large file, who serves that, and what must hold whatever happens meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use larder::artifact::File;
use larder::digest::{Digests, Sha256};
use larder::fsio::{WriteOptions, write_atomic};

use crate::chance::{Random, kill_at};
use crate::machine::{Machine, Said};
use crate::one_file;
use crate::upstream::Upstream;

/// The length of a chunk.
pub(crate) const CHUNK: u64 = 4 << 20;
/// Connections that a machine may make, and begins with.
pub(crate) const CONNECTIONS: u64 = 6;
/// What one kill may cost: for each connection the chunk under way, and what is between the server and the disk.
pub(crate) const LOST_BY_KILL: u64 = CONNECTIONS * (CHUNK + (3 << 20));
/// Sixteen chunks and a bit.
pub(crate) static CONTENT: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| one_file::noise(16 * CHUNK as usize + 4_321));
pub(crate) static SHA256: LazyLock<Sha256> = LazyLock::new(|| Sha256::of(&CONTENT));

pub(crate) fn size() -> u64 {
    CONTENT.len() as u64
}

fn limits(connections: u64) -> String {
    format!("connections = {connections}\nfirst-connections = {connections}\n")
}

/// A machine that wants the file from an address, or from a hub, into `store`.
pub(crate) struct Wanting {
    pub(crate) machine: Machine,
    pub(crate) store: PathBuf,
}

impl Wanting {
    pub(crate) fn from_url(address: &str, connections: u64, store: Option<&Path>) -> Self {
        let from = format!("source = \"http://{address}/model.bin\"\n");
        Self::new(&from, &limits(connections), store)
    }

    pub(crate) fn from_hub(address: &str, connections: u64) -> Self {
        let sources = format!("{}hub = \"http://{address}\"\n", limits(connections));
        Self::new("source = \"hf:lab/model/model.bin\"\n", &sources, None)
    }

    fn new(from: &str, sources: &str, store: Option<&Path>) -> Self {
        let sha256 = *SHA256;
        let size = size();
        let manifest = format!(
            "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n\n[[artifact]]\nname = \"model\"\nstore = \"plain\"\n\
             \x20 [[artifact.file]]\n  path = \"model.bin\"\n  {from}  size = {size}\n  sha256 = \"{sha256}\"\n"
        );
        let path = store.map_or("~/store".to_owned(), |path| path.display().to_string());
        let inventory = format!(
            "manifests = [\"manifests/*.toml\"]\n[stores]\nplain = {{ layout = \"folder\", path = {path:?} }}\n\
             [sources]\n{sources}"
        );
        let machine = Machine::new(&inventory, &manifest);
        let store = store.map_or_else(|| machine.path("store"), Path::to_owned);
        machine.larder(&["lock"]).must_be(0);
        Self { machine, store }
    }

    pub(crate) fn begin(&self) -> Child {
        let mut command = self.machine.command(&["apply", "--yes"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn apply(&self) -> Said {
        self.machine.larder(&["apply", "--yes"])
    }

    /// One call of those that have to do with the partial fails, the `nth` one.
    pub(crate) fn apply_with_error(&self, call: &str, error: &str, nth: u64) -> Said {
        let apply = self.machine.command(&["apply", "--yes"]);
        let mut strace = Command::new("/usr/bin/strace");
        strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
        strace.arg("-P").arg(self.partial()).arg("-e").arg(format!("inject={call}:error={error}:when={nth}"));
        strace.arg(apply.get_program()).args(apply.get_args()).env_clear().current_dir(self.machine.home());
        strace.envs(apply.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Said::of(&mut strace)
    }

    pub(crate) fn end(child: Child) -> Said {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.store.join("model.bin")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.store.join(format!(".larder/{}.partial", *SHA256))
    }

    /// Nothing is visible, or all of it, byte for byte.
    #[track_caller]
    pub(crate) fn nothing_visible_is_wrong(&self) {
        if self.place().exists() {
            assert!(fs_err::read(self.place()).unwrap() == **CONTENT, "the content is wrong");
        }
    }

    #[track_caller]
    pub(crate) fn must_finish(&self) {
        self.apply().must_be(0);
        assert!(self.place().exists());
        self.nothing_visible_is_wrong();
        assert!(!self.partial().exists());
    }

    pub(crate) fn start_over(&self) {
        for folder in ["store", ".local", ".cache"] {
            let folder = self.machine.path(folder);
            if folder.exists() {
                #[expect(clippy::disallowed_methods, reason = "the test's own folder")]
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
    }

    /// From nothing to the whole file, with kills on the way; returns how many.
    pub(crate) fn live(&self, random: &mut Random, longest: Duration, at_most: u64) -> u64 {
        let mut kills = 0;
        while kills < at_most {
            let mut child = self.begin();
            kill_at(&mut child, random.below(longest));
            let said = Self::end(child);
            self.nothing_visible_is_wrong();
            if said.code == Some(0) {
                break;
            }
            assert_eq!(said.code, None, "it ended by itself and failed: {said}");
            kills += 1;
        }
        self.must_finish();
        kills
    }
}

/// Serves the file as a hub repository, as `larder serve` does.
pub(crate) fn serve(root: &Path) -> Upstream {
    let place = root.join("model.bin");
    write_atomic(&place, &CONTENT, &WriteOptions::default()).unwrap();
    let file = File {
        size: Some(size()),
        digests: Digests::sha256(*SHA256),
        lfs: Some(true),
        ..File::named("model.bin".parse().unwrap())
    };
    Upstream::of_repository(vec![(file, place)])
}
