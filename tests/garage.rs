//! Garage, a distributed S3 server that ignores conditional writes: three nodes, one of which dies in the middle.
//! `scripts/garage` builds it and runs this.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use larder::digest::Sha256;

#[expect(dead_code, reason = "shared with other tests")]
#[path = "support/program.rs"]
mod program;

use program::{Lab, Said};

const KEY: &str = "GK0123456789abcdef01234567";
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const TOKEN: &str = "admin-token-of-a-test";
const NODES: u16 = 3;

/// A cluster of three nodes on the loopback, with an empty bucket `fleet`.
struct Garage {
    program: PathBuf,
    folder: tempfile::TempDir,
    nodes: Vec<Child>,
    /// Of each node: its RPC, S3 and admin port.
    ports: Vec<[u16; 3]>,
}

impl Garage {
    fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "scripts/garage tells where it built the program")]
        let program = std::env::var_os("LARDER_GARAGE").expect("run scripts/garage, which builds Garage once");
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let held: Vec<_> = (0..NODES).map(|_| [free(), free(), free()]).collect();
        let ports = held.iter().map(|node| [0, 1, 2].map(|of| node[of].local_addr().unwrap().port())).collect();
        drop(held);
        let mut garage = Self { program: program.into(), folder, nodes: Vec::new(), ports };
        (0..usize::from(NODES)).for_each(|node| garage.write_config(node));
        for node in 0..usize::from(NODES) {
            let child = garage.garage(node).arg("server").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            garage.nodes.push(child);
        }
        (0..usize::from(NODES)).for_each(|node| garage.wait_for(node));
        garage.lay_out();
        garage
    }

    fn config(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node{node}.toml"))
    }

    fn write_config(&self, node: usize) {
        let [rpc, s3, admin] = self.ports[node];
        let root = self.folder.path().join(format!("node{node}"));
        let root = root.display();
        let text = format!(
            "metadata_dir = \"{root}/meta\"\ndata_dir = \"{root}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 3\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{SECRET}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{s3}\"\n\
             [admin]\napi_bind_addr = \"127.0.0.1:{admin}\"\nadmin_token = \"{TOKEN}\"\nmetrics_token = \"{TOKEN}\"\n"
        );
        larder::fsio::write_atomic(&self.config(node), text.as_bytes(), &larder::fsio::WriteOptions::default())
            .unwrap();
    }

    fn garage(&self, node: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.config(node)).env("RUST_LOG", "error");
        command
    }

    /// Runs one command of Garage's own to its end, and answers what it printed.
    fn tell(&self, node: usize, words: &[&str]) -> String {
        let output = self.garage(node).args(words).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "garage {words:?}: {err}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_for(&self, node: usize) {
        while !self.garage(node).args(["node", "id", "-q"]).output().unwrap().status.success()
            || !self.garage(node).arg("status").output().unwrap().status.success()
        {}
    }

    fn lay_out(&self) {
        let ids: Vec<String> =
            (0..usize::from(NODES)).map(|node| self.tell(node, &["node", "id", "-q"]).trim().to_owned()).collect();
        ids[1..].iter().for_each(|id| drop(self.tell(0, &["node", "connect", id])));
        for (node, id) in ids.iter().enumerate() {
            let short = id.split('@').next().unwrap();
            self.tell(0, &["layout", "assign", "-z", &format!("zone{node}"), "-c", "1G", short]);
        }
        self.tell(0, &["layout", "apply", "--version", "1"]);
        self.tell(0, &["key", "import", "--yes", "-n", "larder", KEY, SECRET]);
        self.tell(0, &["bucket", "create", "fleet"]);
        self.tell(0, &["bucket", "allow", "--read", "--write", "--owner", "fleet", "--key", KEY]);
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].kill().unwrap();
        self.nodes[node].wait().unwrap();
    }

    fn machine(&self, name: &str, manifest: &str) -> Lab {
        let inventory = format!(
            "manifests = [\"manifests/*.toml\"]\nmachine = \"{name}\"\n\
             [stores]\nplain = {{ layout = \"folder\", path = \"~/plain\" }}\n[machines]\n{name} = {{}}\n\
             [sources]\norder = [\"bucket\"]\nconnections = 2\nbuckets = [{{ name = \"fleet\", url = \"s3://fleet/lab\", \
             endpoint = \"http://127.0.0.1:{}\", region = \"garage\" }}]\n",
            self.ports[0][1]
        );
        Lab::new(&inventory, manifest)
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn command(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.command(arguments);
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

#[track_caller]
fn run(lab: &Lab, arguments: &[&str], code: i32) -> Said {
    let said = program::said(&mut command(lab, arguments), &lab.path(""));
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    said
}

/// Waits until a part of an upload is noted.
fn wait_for_a_part(uploads: &Path, push: &mut Child) {
    let is_begun = || {
        let entries = std::fs::read_dir(uploads).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut ledgers = entries.filter(|path| path.extension().is_some_and(|end| end == "upload"));
        ledgers.any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.lines().count() > 1))
    };
    while !is_begun() {
        assert!(push.try_wait().unwrap().is_none(), "the push ended before a part was noted");
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "needs Garage: scripts/garage"]
fn a_node_that_dies_in_the_middle_loses_nothing() {
    let mut garage = Garage::start();
    let noise = |len: usize| (0..len as u64).flat_map(|n| *Sha256::of(&n.to_le_bytes()).as_bytes()).take(len).collect();
    let files: [(&str, Vec<u8>); 2] = [("small.json", b"{}".to_vec()), ("large.bin", noise(96 << 20))];
    let file = |(path, bytes): &(&str, Vec<u8>)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    let head = "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n";
    let manifest = format!("{head}{}", files.iter().map(file).collect::<String>());
    let (from, to) = (garage.machine("pc1", &manifest), garage.machine("pc2", &manifest));
    files.iter().for_each(|(path, bytes)| from.write(&format!("home/plain/{path}"), bytes));
    let mut pushing = command(&from, &["push", "--yes"]).stdout(Stdio::null()).spawn().unwrap();
    wait_for_a_part(&from.path("state/uploads"), &mut pushing);
    garage.kill(2);
    let ended = pushing.wait().unwrap();
    if !ended.success() {
        run(&from, &["push", "--yes"], 0);
    }
    assert!(run(&from, &["push", "--yes"], 0).out.contains("2 there already"));
    run(&to, &["apply", "--yes"], 0);
    for (path, bytes) in &files {
        assert!(std::fs::read(to.path(&format!("home/plain/{path}"))).unwrap() == *bytes, "{path}");
    }
    run(&to, &["push", "--report"], 0);
    run(&to, &["status", "--fleet"], 0);
    // Garage overwrites where others refuse: two writers of one key must not harm each other.
    std::thread::scope(|scope| {
        let pushes = [&from, &to].map(|lab| scope.spawn(|| run(lab, &["push", "--yes"], 0)));
        pushes.into_iter().for_each(|push| drop(push.join().unwrap()));
    });
    run(&from, &["prune", "--bucket", "--older-than", "0s", "--apply", "--yes"], 0);
    run(&garage.machine("pc3", &manifest), &["apply", "--yes"], 0);
}
