//! Conditions, looked at on made-up machines: packages, key files, texts.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests set up the trees that larder looks at")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::conditions::{Finding, State, Surroundings, look};
use larder::manifest::Manifests;
use tempfile::TempDir;

struct Machine {
    home: TempDir,
    environments: Vec<PathBuf>,
}

impl Machine {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap(), environments: Vec::new() }
    }

    fn with_environment(mut self, root: &str) -> Self {
        fs::create_dir_all(self.at(root).join("lib/python3.13/site-packages")).unwrap();
        self.environments.push(Path::new("~").join(root));
        self
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn install(&self, root: &str, name: &str, version: &str) -> PathBuf {
        let folder = format!("{root}/lib/python3.13/site-packages/{name}-{version}.dist-info");
        let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not-a-header\n");
        self.write(&format!("{folder}/METADATA"), &metadata).parent().unwrap().to_owned()
    }

    fn look(&self, manifest: &str) -> Vec<Finding> {
        self.look_for(manifest, &|_| true)
    }

    fn look_for(&self, manifest: &str, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
        let manifests = Manifests::parse(Path::new("lab.toml"), manifest).unwrap();
        look(&manifests, Surroundings { home: self.home.path(), environments: &self.environments }, wanted)
    }

    fn look_one(&self, manifest: &str) -> Finding {
        let mut findings = self.look(manifest);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings.remove(0)
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn git(folder: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.org"];
    let output = Command::new("git").arg("-C").arg(folder).args(identity).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const TORCH: &str = "[[package]]\nname = \"torch\"\nversion = \"2.11.0\"\npurpose = \"GPU computing\"\n";

#[test]
fn packages_are_missing_other_or_present() {
    let machine = Machine::new().with_environment("venv");
    let missing = machine.look_one(TORCH);
    assert_eq!((missing.state, missing.what.as_str()), (State::Fault, "it is not installed"));
    assert!(missing.fix.ends_with("venv/bin/pip install torch==2.11.0"), "{}", missing.fix);

    let old = machine.install("venv", "torch", "2.10.0");
    let other = machine.look_one(TORCH);
    assert_eq!(other.state, State::Fault);
    assert_eq!(other.what, "version 2.10.0 is installed, 2.11.0 is wanted");

    machine.install("venv", "torch", "2.11.0");
    let twice = machine.look_one(TORCH);
    assert_eq!((twice.state, twice.what.as_str()), (State::Fault, "it is installed 2 times: 2.10.0, 2.11.0"));

    fs::remove_dir_all(old).unwrap();
    let present = machine.look_one(TORCH);
    assert_eq!((present.state, present.what.as_str(), present.fix.as_str()), (State::Ok, "version 2.11.0", ""));
    assert_eq!(present.why, "GPU computing");
}

#[test]
fn names_are_compared_as_python_does() {
    let machine = Machine::new().with_environment("venv");
    machine.install("venv", "De_Core.News-lg".replace('-', "_").as_str(), "3.8.0");
    let found = machine.look_one("[[package]]\nname = \"de-core_news.lg\"\nversion = \"3.8.0\"\n");
    assert_eq!(found.state, State::Ok, "{}", found.what);
}

#[test]
fn what_pip_left_behind_and_what_has_no_metadata_is_understood() {
    let machine = Machine::new().with_environment("venv");
    // pip's name for what it is about to remove.
    machine.install("venv", "~orch", "2.9.0");
    fs::create_dir_all(machine.at("venv/lib/python3.13/site-packages/torch-2.11.0.dist-info")).unwrap();
    assert_eq!(machine.look_one(TORCH).state, State::Ok);
}

#[test]
fn lib64_as_a_link_is_not_a_second_installation() {
    let machine = Machine::new().with_environment("venv");
    machine.install("venv", "torch", "2.11.0");
    std::os::unix::fs::symlink("lib", machine.at("venv/lib64")).unwrap();
    assert_eq!(machine.look_one(TORCH).state, State::Ok);
}

#[test]
fn without_an_environment_nothing_is_claimed() {
    let none = Machine::new().look_one(TORCH);
    assert_eq!((none.state, none.what.as_str()), (State::Unknown, "the inventory names no Python environment"));

    let mut machine = Machine::new();
    machine.environments.push("~/no/venv".into());
    let absent = machine.look_one(TORCH);
    assert_eq!(absent.state, State::Unknown);
    assert!(absent.what.contains("no/venv is not a Python environment"), "{}", absent.what);
}

#[test]
fn every_environment_is_looked_at() {
    let machine = Machine::new().with_environment("development[1]/venv").with_environment("production/venv");
    machine.install("development[1]/venv", "torch", "2.11.0");
    let findings = machine.look(TORCH);
    let states: Vec<State> = findings.iter().map(|finding| finding.state).collect();
    assert_eq!(states, [State::Ok, State::Fault], "{findings:#?}");
    assert!(findings[1].subject.ends_with("production/venv"), "{}", findings[1].subject);
}

#[test]
fn an_editable_install_is_judged_by_its_commit() {
    let machine = Machine::new().with_environment("venv");
    let folder = machine.install("venv", "heartlib", "0.1.0");
    let checkout = machine.write("heartlib/setup.py", "").parent().unwrap().to_owned();
    git(&checkout, &["init", "-q"]);
    git(&checkout, &["add", "."]);
    git(&checkout, &["commit", "-q", "-m", "clamp"]);
    let head = Command::new("git").arg("-C").arg(&checkout).args(["rev-parse", "HEAD"]).output().unwrap().stdout;
    let head = String::from_utf8(head).unwrap().trim().to_owned();
    let manifest = |commit: &str| format!("[[package]]\nname = \"heartlib\"\nrevision = \"{commit}\"\n");

    let unrecorded = machine.look_one(&manifest(&head));
    assert_eq!(unrecorded.state, State::Unknown, "{}", unrecorded.what);

    let url = format!("file://{}", checkout.display());
    let record = format!("{{\"url\": \"{url}\", \"dir_info\": {{\"editable\": true}}}}");
    fs::write(folder.join("direct_url.json"), record).unwrap();
    assert_eq!(machine.look_one(&manifest(&head)).state, State::Ok);
    let other = machine.look_one(&manifest(&"0".repeat(40)));
    assert_eq!(other.state, State::Fault);
    assert!(other.what.contains(&head), "{}", other.what);
}

const SPACY: &str = r#"
[[artifact]]
name = "de_core_news_lg"
source = "local"
store = "wheels"
[[condition]]
name = "exactly-two"
artifacts = ["de_core_news_lg"]
why = "false positives"
fix = "uninstall the others"
require = { kind = "only-packages", packages = ["??_core_news_*", "??_ent_wiki_*"], only = ["de_core_news_lg", "xx_ent_wiki_sm"] }
"#;

#[test]
fn exactly_the_named_packages_are_there() {
    let machine = Machine::new().with_environment("venv");
    machine.install("venv", "de_core_news_lg", "3.8.0");
    machine.install("venv", "spacy", "3.8.11");
    let missing = machine.look_one(SPACY);
    assert_eq!((missing.state, missing.what.as_str()), (State::Fault, "missing: xx-ent-wiki-sm"));

    machine.install("venv", "xx_ent_wiki_sm", "3.8.0");
    assert_eq!(machine.look_one(SPACY).state, State::Ok);

    machine.install("venv", "fr_core_news_sm", "3.8.0");
    let extra = machine.look_one(SPACY);
    assert_eq!((extra.state, extra.what.as_str()), (State::Fault, "too many: fr-core-news-sm"));
    assert_eq!(extra.fix, "uninstall the others");
}

#[test]
fn conditions_of_unwanted_artifacts_are_not_looked_at() {
    let machine = Machine::new().with_environment("venv");
    assert_eq!(machine.look_for(SPACY, &|name| name == "sd35-large"), []);
    let package = "[[artifact]]\nname = \"mula\"\nsource = \"local\"\nstore = \"x\"\n\
                   [[package]]\nname = \"heartlib\"\nneeded-by = [\"mula\"]\n";
    assert_eq!(machine.look_for(package, &|name| name == "sd35-large"), []);
    assert_eq!(machine.look_for(package, &|name| name == "mula").len(), 1);
}

const CLOUD: &str = r#"
[[cloud]]
name = "FAST"
model = "haiku"
provider = "Bedrock"
key = "~/platform_*/devserver/bedrock.key"
[[cloud]]
name = "SLOW"
model = "opus"
provider = "Bedrock"
key = "~/platform_*/devserver/bedrock.key"
"#;

#[test]
fn a_key_is_there_private_and_ignored_by_git() {
    let machine = Machine::new();
    let missing = machine.look_one(CLOUD);
    assert_eq!((missing.state, missing.what.as_str()), (State::Fault, "there is no such file"));
    assert!(missing.why.contains("FAST, SLOW"), "{}", missing.why);

    let key = machine.write("platform_a/devserver/bedrock.key", "secret-of-the-lab");
    mode(&key, 0o640);
    let open = machine.look_one(CLOUD);
    assert_eq!(open.state, State::Fault);
    assert!(open.what.starts_with("its mode is 0640"), "{}", open.what);
    assert_eq!(open.fix, format!("chmod 600 {}", key.display()));

    mode(&key, 0o600);
    let outside = machine.look_one(CLOUD);
    assert_eq!((outside.state, outside.what.as_str()), (State::Ok, "there, private; not in a git repository"));

    let platform = machine.at("platform_a");
    git(&platform, &["init", "-q"]);
    let not_ignored = machine.look_one(CLOUD);
    assert_eq!(not_ignored.state, State::Fault);
    assert!(not_ignored.what.starts_with("git does not ignore it"), "{}", not_ignored.what);

    machine.write("platform_a/.gitignore", "*.key\n");
    let ignored = machine.look_one(CLOUD);
    assert_eq!((ignored.state, ignored.what.as_str()), (State::Ok, "there, private, ignored by git"));

    // Ignored by pattern, but already in the history: git will go on publishing it.
    git(&platform, &["add", "-f", "devserver/bedrock.key"]);
    assert_eq!(machine.look_one(CLOUD).state, State::Fault);
}

#[test]
fn a_key_that_is_no_usable_file_is_a_fault() {
    let machine = Machine::new();
    let key = machine.write("platform_a/devserver/bedrock.key", "");
    mode(&key, 0o600);
    assert_eq!(machine.look_one(CLOUD).what, "it is empty");

    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    assert_eq!(machine.look_one(CLOUD).what, "it is not a file");

    fs::remove_dir(&key).unwrap();
    std::os::unix::fs::symlink("nowhere", &key).unwrap();
    let dangling = machine.look_one(CLOUD);
    assert_eq!(dangling.state, State::Fault);
    assert!(dangling.what.starts_with("it cannot be looked at"), "{}", dangling.what);
}

#[test]
fn the_content_of_a_key_is_never_read() {
    use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
    let machine = Machine::new();
    let key = machine.write("platform_a/devserver/bedrock.key", "secret-of-the-lab");
    mode(&key, 0o600);
    let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    add_watch(&watch, &key, WatchFlags::OPEN | WatchFlags::ACCESS).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut seen = Reader::new(&watch, &mut buffer);
    assert_eq!(machine.look_one(CLOUD).state, State::Ok);
    assert_eq!(seen.next().err(), Some(rustix::io::Errno::AGAIN), "somebody opened the key");
    // The kernel does tell of whoever reads it.
    fs::read(&key).unwrap();
    assert!(seen.next().is_ok());
}

#[test]
fn every_checkout_has_a_key_of_its_own() {
    let machine = Machine::new();
    for checkout in ["platform_a", "platform_b"] {
        let key = machine.write(&format!("{checkout}/devserver/bedrock.key"), "k");
        mode(&key, if checkout == "platform_a" { 0o600 } else { 0o644 });
    }
    let states: Vec<State> = machine.look(CLOUD).iter().map(|finding| finding.state).collect();
    assert_eq!(states, [State::Ok, State::Fault]);
}

const CLAMP: &str = r#"
[[condition]]
name = "clamp"
why = "surplus tokens stop the GPU"
fix = "add the clamp"
require = { kind = "text-present", file = "~/heartlib/flow_matching.py", text = "clamp(" }
"#;

#[test]
fn a_text_must_be_present_in_code_not_in_a_comment() {
    let machine = Machine::new();
    let unknown = machine.look_one(CLAMP);
    assert_eq!(unknown.state, State::Unknown, "a file that is not there proves nothing");

    machine.write("heartlib/flow_matching.py", "def inference_codes():\n    # torch.clamp(codes, 0, 8191)\n    pass\n");
    let absent = machine.look_one(CLAMP);
    assert_eq!((absent.state, absent.what.as_str()), (State::Fault, "no line has \"clamp(\""));

    machine.write("heartlib/flow_matching.py", "def inference_codes():\n    codes = torch.clamp(codes, 0, 8191)\n");
    let present = machine.look_one(CLAMP);
    assert_eq!((present.state, present.what.as_str()), (State::Ok, "line 2 has \"clamp(\""));
}

const AUTOCAST: &str = r#"
[[condition]]
name = "no-autocast"
why = "bfloat16 codec"
fix = "remove it"
require = { kind = "text-absent", file = "~/platform_*/backend.py", text = "autocast", around = "self._pipeline(", within = 3 }
"#;

#[rstest::rstest]
#[case("with torch.no_grad():\n    self._pipeline(x)\n", State::Ok)]
#[case("with torch.autocast('cuda'):\n    self._pipeline(x)\n", State::Fault)]
#[case("with torch.autocast('cuda'):\n    a\n    b\n    self._pipeline(x)\n", State::Fault)]
#[case("with torch.autocast('cuda'):\n    a\n    b\n    c\nself._pipeline(x)\n", State::Ok)]
#[case("# never autocast here\nself._pipeline(x)\n", State::Ok)]
#[case("self._pipeline(x)\nwith torch.autocast('cuda'):\n    other(x)\n", State::Ok)]
#[case("with torch.autocast('cuda'): self._pipeline(x)\n", State::Fault)]
#[case("nothing of the kind\n", State::Ok)]
fn a_text_must_not_stand_around_another(#[case] source: &str, #[case] expected: State) {
    let machine = Machine::new();
    machine.write("platform_a/backend.py", source);
    let finding = machine.look_one(AUTOCAST);
    assert_eq!(finding.state, expected, "{source}: {}", finding.what);
}

#[test]
fn a_pipe_in_a_files_place_does_not_block() {
    let machine = Machine::new();
    let pipe = machine.at("platform_a/backend.py");
    fs::create_dir_all(pipe.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let finding = machine.look_one(AUTOCAST);
    assert_eq!((finding.state, finding.what.as_str()), (State::Unknown, "it is not a file"));
}
