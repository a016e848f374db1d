//! One machine of a lab: a home, an inventory and manifests in a folder of its own, and the real program there.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use larder::fsio::{WriteOptions, write_atomic};
use serde_json::Value;

/// Longer than any answer takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine; its folder goes when it is dropped.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Machine {
    /// A machine with this inventory and one manifest. `~` is its folder.
    pub(crate) fn new(inventory: &str, manifest: &str) -> Self {
        let machine = Self { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        machine.write("inventory.toml", inventory);
        machine.write("manifests/lab.toml", manifest);
        machine
    }

    pub(crate) fn home(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.home().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: &str) {
        write_atomic(&self.path(relative), text.as_bytes(), &WriteOptions::default()).unwrap();
    }

    /// larder on this machine, with nothing of the caller's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(args).current_dir(self.home()).env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/bin:/bin").env("HOME", self.home()).env("HF_HOME", self.home());
        command
    }

    /// Runs larder to its end.
    pub(crate) fn larder(&self, args: &[&str]) -> Said {
        Said::of(&mut self.command(args))
    }

    /// Runs larder with these variables.
    pub(crate) fn larder_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Said {
        Said::of(self.command(args).envs(variables.iter().copied()))
    }

    /// Starts `larder serve` on a free port.
    pub(crate) fn serve(&self) -> Serving {
        let mut command = self.command(&["-v", "serve", "--address", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut serving = Serving { child, host: String::new(), lines };
        let mut before = String::new();
        while let Ok(line) = serving.lines.recv_timeout(PATIENCE) {
            if let Some((_, host)) = line.split_once(" at http://") {
                host.trim().clone_into(&mut serving.host);
                return serving;
            }
            let _ = writeln!(before, "{line}");
        }
        panic!("larder serve did not start:\n{before}");
    }
}

impl Said {
    /// Runs `command` to its end.
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Fails, with everything that was said, unless the exit code is this one.
    #[track_caller]
    pub(crate) fn must_be(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails unless all of these words were said.
    #[track_caller]
    pub(crate) fn must_say(self, words: &[&str]) -> Self {
        let all = self.to_string();
        for word in words {
            assert!(all.contains(word), "{word:?} is not in:\n{all}");
        }
        self
    }

    /// The object of `--json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}\n{}{}", self.code, self.out, self.err)
    }
}

/// A running `larder serve`; ends when dropped.
pub(crate) struct Serving {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    lines: Receiver<String>,
}

impl Serving {
    /// The address for `HF_ENDPOINT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// What was asked since the last call: method and path, in order.
    pub(crate) fn requests(&self) -> Vec<String> {
        let asked = |line: &String| {
            let field = |name: &str| line.split_once(name)?.1.split_whitespace().next();
            Some(format!("{} {}", field("method=")?, field("path=")?.trim_matches('"')))
        };
        self.log().iter().filter_map(asked).collect()
    }

    /// What the server said since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        // The server tells of its requests in order: what comes before this one has been told by then.
        let mut connection = TcpStream::connect(&self.host).unwrap();
        let request = format!("GET /until-here HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.host);
        connection.write_all(request.as_bytes()).unwrap();
        connection.read_to_end(&mut Vec::new()).unwrap();
        let next = || self.lines.recv_timeout(PATIENCE).unwrap();
        std::iter::repeat_with(next).take_while(|line| !line.contains("/until-here")).collect()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of every file below `folder`, by path; links are followed.
pub(crate) fn contents(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).follow_links(true).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    let content = |entry: walkdir::DirEntry| {
        let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        (path, fs_err::read(entry.path()).unwrap())
    };
    files.map(content).collect()
}
