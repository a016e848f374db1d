//! A genuine model from end to end: from a drive to a machine, from its server to another one, and into a program.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use larder::digest::Sha256;

#[path = "support/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod machine;
#[path = "support/parts.rs"]
mod parts;
#[path = "support/python.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod python;

use machine::{Machine, contents};
use python::{client, output};

const REPOSITORY: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// What the tests call the commit; the wheel that the files come from does not tell it.
const COMMIT: &str = "00000000000000000000000000000000000a11e6";
const WEIGHTS: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
const LENGTH: u64 = 90_868_376;
/// Tensors, and how alike three sentences are: the model's own documentation prints these for them.
const ANSWER: &str = "104 tensors, 0.6660 0.1046 0.1411";

/// Every file of `drive`, pinned.
fn pinned(drive: &Path) -> String {
    let mut text = format!(
        "[[artifact]]\nname = \"minilm\"\nsource = \"hf:{REPOSITORY}@{COMMIT}\"\nstore = \"huggingface\"\ncomplete = true\n"
    );
    let files = contents(drive);
    assert_eq!(files.len(), 13);
    for (path, bytes) in files {
        let size = bytes.len();
        let sha256 = if path == "model.safetensors" { WEIGHTS.to_owned() } else { Sha256::of(&bytes).to_string() };
        let _ = write!(text, "  [[artifact.file]]\n  path = {path:?}\n  size = {size}\n  sha256 = \"{sha256}\"\n");
    }
    text
}

fn snapshot(machine: &Machine) -> PathBuf {
    let repository = REPOSITORY.replace('/', "--");
    machine.path(&format!("hub/models--{repository}/snapshots/{COMMIT}"))
}

/// Embeds three sentences with what the machine has.
fn embed(python: &Path, machine: &Machine) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_weights/embed.py");
    output(client(python, machine.home()).arg(script).arg(REPOSITORY))
}

fn flip_a_bit(file: &Path, at: u64) {
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x40]).unwrap();
}

#[test]
fn a_genuine_model_travels_loads_rots_is_found_out_and_mended() {
    let (Some(drive), Some(python)) = (parts::part("minilm"), parts::part("hf-latest/bin/python")) else { return };
    let stores = "[stores]\nhuggingface = { layout = \"hf-cache\", path = \"~/hub\" }\n";
    let first = Machine::new(&format!("{stores}[sources]\ndrives = [{drive:?}]\n"), &pinned(&drive));
    first.larder(&["lock", "--offline"]).must_be(0);
    first.larder(&["apply", "--yes", "--offline"]).must_be(0);
    assert_eq!(contents(&snapshot(&first)), contents(&drive));

    let serving = first.serve();
    let declared =
        format!("[[artifact]]\nname = \"minilm\"\nsource = \"hf:{REPOSITORY}@{COMMIT}\"\nstore = \"huggingface\"\n");
    // Where there may be one connection, a file is one request.
    let sources = format!("[sources]\nconnections = 1\nhub = \"{}\"\n", serving.url());
    let second = Machine::new(&format!("{stores}{sources}"), &declared);
    second.larder(&["lock"]).must_be(0).must_say(&["13 of them with a digest"]);
    let plan = second.larder(&["plan", "--json"]).must_be(0).json();
    assert!(plan["bytes_to_move"].as_u64().unwrap() > LENGTH, "{plan}");
    second.larder(&["apply", "--yes"]).must_be(0);
    assert_eq!(contents(&snapshot(&second)), contents(&drive));
    let weights = fs_err::canonicalize(snapshot(&second).join("model.safetensors")).unwrap();
    assert_eq!((weights.file_name().unwrap().to_str(), weights.metadata().unwrap().len()), (Some(WEIGHTS), LENGTH));
    second.larder(&["verify"]).must_be(0);
    assert!(embed(&python, &second).contains(ANSWER));

    flip_a_bit(&weights, LENGTH / 2);
    let found = second.larder(&["verify", "--json"]).must_be(3).json();
    let faults = found["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 1, "{found}");
    assert_eq!((&faults[0]["path"], &faults[0]["kind"]), (&"model.safetensors".into(), &"replaced".into()));
    serving.requests();
    second.larder(&["apply", "--yes"]).must_be(0);
    let asked = serving.requests();
    let content: Vec<&String> =
        asked.iter().filter(|line| line.starts_with("GET") && line.contains("/resolve/")).collect();
    assert!(content.iter().all(|line| line.ends_with("/model.safetensors")) && content.len() == 1, "{asked:?}");
    second.larder(&["verify"]).must_be(0);
    assert!(embed(&python, &second).contains(ANSWER));
}
