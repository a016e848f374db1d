//! `larder export`, read by the tools it is made for: sha256sum, rclone, aria2, the CycloneDX schema.
#![expect(clippy::unwrap_used, clippy::duplicate_mod, reason = "tests; two parts say what is missing")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use larder::artifact::{Artifact, File, Origin};
use larder::digest::{Digests, Sha256};
use larder::fsio::{WriteOptions, write_atomic};
use larder::serve::{Guests, Index, Served, Server, Traffic, router};
use serde_json::Value;

#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "this lab has an inventory of its own")]
#[path = "support/program.rs"]
mod program;
#[path = "support/tool.rs"]
mod tool;

use program::Lab;
use tool::tool;

/// More than two pieces, and no two alike.
fn weights() -> Vec<u8> {
    (0..2_500_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A plain store whose path has a backslash, with a large file, one under an odd name, and one that a pattern finds.
fn lab() -> Lab {
    let weights = weights();
    let file = |path: &str, bytes: &[u8]| {
        format!("[[artifact.file]]\npath = {path:?}\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    let manifest = [
        "[[artifact]]\nname = \"voice\"\ntitle = \"A voice\"\nlicense = \"MIT\"\nstore = \"plain\"\nsource = \"hf:lab/voice\"\n",
        &file("voice/weights.bin", &weights),
        &file("voice/ä & <b> 'q'.txt", b"odd"),
        "[[artifact]]\nname = \"loras\"\nlicense = \"house-rules\"\nstore = \"plain\"\nsource = \"local\"\nmatch = { glob = \"loras/*\", count = 1 }\n",
    ];
    let inventory =
        "machine = \"pc1\"\n\n[stores]\nplain = { layout = \"folder\", path = '~/sto\\re' }\n\n[machines.pc1]\n";
    let lab = Lab::new(inventory, &manifest.concat());
    lab.write("home/sto\\re/voice/weights.bin", &weights);
    lab.write("home/sto\\re/voice/ä & <b> 'q'.txt", b"odd");
    lab.write("home/sto\\re/loras/made here.safetensors", b"made here");
    lab
}

fn ran(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn sha256sum_finds_every_file_and_every_wrong_one() {
    let lab = lab();
    let before = lab.run(&["export", "--format", "sha256sums", "--out", "SUMS"]);
    assert_eq!(before.code, 4, "nobody has read the LoRA yet: {before:?}");
    assert!(
        before
            .err
            .contains("left out: loras/loras/made here.safetensors: no sha256 of it is known: read it with --read"),
        "{}",
        before.err
    );
    let check = |arguments: &[&str], folder: &str| {
        assert_eq!(lab.run(arguments).code, 0);
        ran(Command::new("sha256sum").args(["--check", "--strict"]).arg(lab.path("SUMS")).current_dir(lab.path(folder)))
    };
    let absolute = check(&["export", "--format", "sha256sums", "--read", "--out", "SUMS"], "manifests");
    assert!(absolute.status.success() && text(&absolute).matches("OK").count() == 3, "{}", text(&absolute));
    let within = ["export", "--format", "sha256sums", "--store", "plain", "--out", "SUMS"];
    assert!(fs_err::read_to_string(lab.path("SUMS")).unwrap().lines().all(|line| line.starts_with('\\')));
    let relative = check(&within, "home/sto\\re");
    assert!(fs_err::read_to_string(lab.path("SUMS")).unwrap().lines().all(|line| !line.starts_with('\\')));
    assert!(relative.status.success() && text(&relative).contains("voice/weights.bin: OK"), "{}", text(&relative));
    lab.write("home/sto\\re/voice/ä & <b> 'q'.txt", b"0dd");
    let wrong = check(&within, "home/sto\\re");
    assert!(!wrong.status.success() && text(&wrong).contains("'q'.txt: FAILED"), "{}", text(&wrong));
}

#[test]
fn rclone_checks_a_store_by_it() {
    let Some(rclone) = tool("rclone") else { return };
    let lab = lab();
    lab.run(&["export", "--format", "sha256sums", "--store", "plain", "--out", "SUMS"]);
    let check = || {
        ran(Command::new(&rclone)
            .env_clear()
            .env("HOME", lab.path("home"))
            .args(["checksum", "sha256", "--one-way"])
            .args([lab.path("SUMS"), lab.path("home/sto\\re")]))
    };
    let right = check();
    assert!(right.status.success() && text(&right).contains("2 matching files"), "{}", text(&right));
    lab.write("home/sto\\re/voice/ä & <b> 'q'.txt", b"0dd");
    let wrong = check();
    assert!(!wrong.status.success() && text(&wrong).contains("1 differences found"), "{}", text(&wrong));
}

/// A machine that serves the voice, and counts.
struct Mirror {
    address: String,
    traffic: Arc<Traffic>,
    _runtime: tokio::runtime::Runtime,
    _content: tempfile::TempDir,
}

fn mirror() -> Mirror {
    let content = tempfile::tempdir().unwrap();
    let (place, bytes) = (content.path().join("weights"), weights());
    write_atomic(&place, &bytes, &WriteOptions::default()).unwrap();
    let digests = Digests::sha256(Sha256::of(&bytes));
    let artifact = Artifact {
        name: "voice".to_owned(),
        store: "plain".to_owned(),
        source: "hf:lab/voice".parse().unwrap(),
        declared: String::new(),
        revision: None,
        origin: Origin::Upstream,
        complete: true,
        whole: false,
        irreplaceable: false,
        ollama: None,
        pattern: None,
        folder: None,
        files: vec![File { size: Some(bytes.len() as u64), digests, ..File::named("weights.bin".parse().unwrap()) }],
    };
    let index = Index::of(vec![Served { artifact, content: vec![Some(place)] }], ["/"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let traffic = Arc::new(Traffic::default());
    let server = runtime.block_on(Server::bind((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
    let address = format!("http://{}", server.local_addr());
    runtime.spawn(server.run(router(index, Guests::default(), traffic.clone()), std::future::pending()));
    Mirror { address, traffic, _runtime: runtime, _content: content }
}

fn aria2(aria2c: &Path, folder: &Path, metalink: &Path) -> Output {
    ran(Command::new(aria2c)
        .env_clear()
        .args(["--no-conf", "--check-integrity=true", "--allow-overwrite=true", "--file-allocation=none"])
        .args(["--metalink-preferred-protocol=http", "--uri-selector=inorder", "--max-tries=1", "--split=1"])
        .args(["--select-file=1", "--dir"])
        .arg(folder)
        .arg("--metalink-file")
        .arg(metalink))
}

#[test]
fn aria2_repairs_by_the_pieces_alone() {
    let Some(aria2c) = tool("aria2c") else { return };
    let (lab, mirror) = (lab(), mirror());
    let arguments =
        ["export", "--format", "metalink", "--store", "plain", "--pieces", "--out", "lab.meta4", "--mirror"];
    let said = lab.run(&[&arguments[..], &[&mirror.address]].concat());
    assert_eq!(said.code, 4, "the LoRA is left out: {said:?}");
    let document = fs_err::read_to_string(lab.path("lab.meta4")).unwrap();
    assert!(document.contains("<file name=\"voice/ä &amp; &lt;b&gt; 'q'.txt\">"), "{document}");
    assert!(
        document.contains("<url priority=\"2\">https://huggingface.co/lab/voice/resolve/main/voice/weights.bin</url>"),
        "{document}"
    );
    let place = lab.path("home/sto\\re/voice/weights.bin");
    let mut rotten = weights();
    rotten[5 << 20] ^= 1;
    write_atomic(&place, &rotten, &WriteOptions::default()).unwrap();
    let before = mirror.traffic.bytes();
    let output = aria2(&aria2c, &lab.path("home/sto\\re"), &lab.path("lab.meta4"));
    assert!(output.status.success(), "{}", text(&output));
    assert!(fs_err::read(&place).unwrap() == weights(), "it is not mended: {}", text(&output));
    let moved = mirror.traffic.bytes() - before;
    assert!((1..=6 << 20).contains(&moved), "{moved} bytes for one wrong piece of 4 MiB");
    let empty = lab.path("empty");
    let output = aria2(&aria2c, &empty, &lab.path("lab.meta4"));
    assert!(
        output.status.success() && fs_err::read(empty.join("voice/weights.bin")).unwrap() == weights(),
        "{}",
        text(&output)
    );
}

#[test]
fn pieces_of_wrong_content_are_told_to_nobody() {
    let lab = lab();
    lab.write("home/sto\\re/voice/weights.bin", b"something else");
    let said = lab.run(&["export", "--format", "metalink", "--pieces", "--mirror", "http://pc2:8014"]);
    assert_eq!(said.code, 4);
    assert!(said.err.contains("left out: voice/voice/weights.bin: its content here is wrong"), "{}", said.err);
    assert!(!said.out.contains("weights.bin") && said.out.contains("<file name=\"plain/voice/ä"), "{}", said.out);
    let nobody = lab.run(&["export", "--format", "sha256sums", "--pieces"]);
    assert!(nobody.code == 2 && nobody.err.contains("--pieces is for --format metalink"), "{nobody:?}");
    let nowhere = lab.run(&["export", "--format", "sha256sums", "--store", "plian"]);
    assert!(nowhere.code == 2 && nowhere.err.contains("hint: it has plain"), "{nowhere:?}");
}

/// Complains of a document that is not CycloneDX 1.6, and of one whose names come twice.
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
if error: sys.exit(str(error)[:2000])
";

fn validate(python: &Path, document: &Path) {
    let output = ran(Command::new(python).arg("-c").arg(VALIDATE).arg(document));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_bill_of_materials_follows_the_official_schema() {
    let Some(python) = parts::part("cyclonedx/bin/python") else { return };
    let lab = lab();
    assert_eq!(lab.run(&["export", "--format", "cyclonedx", "--out", "bom.json"]).code, 4);
    validate(&python, &lab.path("bom.json"));
    let bom: Value = serde_json::from_slice(&fs_err::read(lab.path("bom.json")).unwrap()).unwrap();
    let voice = &bom["components"][0];
    assert_eq!(
        (&voice["type"], &voice["licenses"][0]["license"]["id"]),
        (&"machine-learning-model".into(), &"MIT".into())
    );
    assert_eq!(voice["components"][0]["hashes"][0]["content"], Sha256::of(&weights()).to_string());
    assert_eq!(bom["components"][1]["licenses"][0]["license"]["name"], "house-rules");
    let again = lab.run(&["export", "--format", "cyclonedx"]);
    let again: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(again["serialNumber"], bom["serialNumber"], "the same state has the same number");
}

#[test]
fn the_bill_of_the_real_lab_follows_it_too() {
    let Some(python) = parts::part("cyclonedx/bin/python") else { return };
    let home = tempfile::tempdir().unwrap();
    let out: PathBuf = home.path().join("bom.json");
    let mut command = program::program(home.path());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["export", "--format", "cyclonedx", "--out"]).arg(&out);
    let said = program::said(&mut command, home.path());
    assert!([0, 4].contains(&said.code), "{said:?}");
    validate(&python, &out);
    let bom: Value = serde_json::from_slice(&fs_err::read(&out).unwrap()).unwrap();
    assert!(bom["components"].as_array().unwrap().len() > 30);
}
