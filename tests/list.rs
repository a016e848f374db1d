//! `larder list`: figures, totals and the text, on a small lab and on the real one.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larder::inventory::Profile;
use larder::lock::Lock;
use larder::manifest::{Declared, Manifests};
use larder::report::list::{self, Basis, Certainty, Kind, List, Request};

const SMALL: &str = r#"
[[section]]
name = "lab"
title = "The lab"
documented = "~1 GB"
difference = "The document does not count the sound."

[[section]]
name = "images"
title = "Images"
part-of = "lab"
documented = "0.9 GB"

[[section]]
name = "extra"
title = "Copies"

[[artifact]]
name = "picture"
title = "Picture maker"
section = "images"
source = "hf:acme/picture@0123456789012345678901234567890123456789"
include = ["*.safetensors", "*.json"]
complete = true
download = "pipeline"
store = "huggingface"
license = "Apache-2.0"
gated = true
file = [
  { path = "a.safetensors", size = 536870912, sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
  { path = "b.json", size = 706, git-sha1 = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f" },
]

[[artifact]]
name = "guard:1b"
section = "images"
source = "ollama:guard:1b"
manifest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
store = "ollama"
total = 1048576

[[artifact]]
name = "sound"
section = "lab"
alternatives = ["hf:acme/one", "hf:acme/two"]
store = "songs"
folder = "three"
size = "300 MiB"
file = [{ path = "x.bin" }, { path = "y.bin", size = 5, md5 = "900150983cd24fb0d6963f7d28e17f72" }]

[[artifact]]
name = "own-lora"
section = "lab"
source = "local"
store = "songs"
match = { glob = "*.lora", count = 5 }

[[artifact]]
name = "picture-copy"
section = "extra"
duplicate-of = "picture"
note = "Nobody reads it, and it may be removed."
tags = ["duplicate"]
store = "songs"
size = "0.5 GiB"

[[package]]
name = "torch"
version = "2.11.0"
documented = "2.10.0"
sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

[[package]]
name = "songlib"
revision = "abc123"
needed-by = ["sound"]

[[cloud]]
name = "FAST"
model = "haiku"
provider = "Bedrock"
key = "~/a.key"

[[condition]]
name = "clamp"
artifacts = ["sound"]
why = "surplus tokens stop the GPU"
fix = "clamp"
require = { kind = "text-present", file = "~/x.py", text = "clamp(" }
"#;

fn small() -> Manifests {
    Manifests::parse(Path::new("small.toml"), SMALL).unwrap()
}

fn list(manifests: &Manifests, lock: Option<&Lock>, wanted: &dyn Fn(&Declared) -> bool) -> List {
    let location = |artifact: &Declared| Some(Path::new("/models").join(&artifact.store));
    let (profiles, profile) = (&BTreeMap::new(), None);
    list::list(&Request { manifests, lock, profiles, wanted, profile, location: &location }).unwrap()
}

fn render(list: &List, width: u16) -> String {
    list::render(list, width, false)
}

#[test]
fn sizes_say_how_far_they_are_right() {
    let list = list(&small(), None, &|_| true);
    let sizes: Vec<_> = list.artifacts.iter().map(|a| (a.name.as_str(), a.size.bytes, a.size.certainty)).collect();
    let expected = [
        ("picture", Some(536_871_618), Certainty::Exact),
        ("guard:1b", Some(1_048_576), Certainty::Exact),
        ("sound", Some(314_572_800), Certainty::Approximate),
        ("own-lora", None, Certainty::Unknown),
        ("picture-copy", Some(536_870_912), Certainty::Approximate),
    ];
    assert_eq!(sizes, expected);
    let kinds: Vec<Kind> = list.artifacts.iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [Kind::Pipeline, Kind::Image, Kind::Files, Kind::InHouse, Kind::Copy]);
    // A git-sha1 proves content as a sha256 does; an md5 does not.
    let pinned: Vec<usize> = list.artifacts.iter().map(|a| a.pinned).collect();
    assert_eq!(pinned, [2, 0, 0, 0, 0]);
    assert_eq!((list.total.bytes, list.total.exact_bytes), (852_492_994, 537_920_194));
    assert_eq!((list.total.artifacts, list.total.copies, list.total.unknown), (4, 1, 1));
}

#[test]
fn the_locks_figures_are_preferred() {
    let lock = r#"{"version": 1, "revision": 0, "artifacts": [
{"name":"sound","store":"songs","source":"hf:acme/one","declared":"x","revision":"r","origin":"upstream","complete":true,"files":[
  {"path":"x.bin","size":7,"digests":{"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}},
  {"path":"y.bin","size":5}]}
]}"#;
    let lock = Lock::parse(Path::new("inventory.lock"), lock).unwrap();
    let list = list(&small(), Some(&lock), &|artifact| artifact.name == "sound");
    let sound = &list.artifacts[0];
    assert_eq!((sound.size.bytes, sound.size.certainty, sound.basis), (Some(12), Certainty::Exact, Basis::Lock));
    assert_eq!((sound.files, sound.pinned, sound.files_complete), (2, 1, true));
}

#[test]
fn a_part_of_a_section_is_not_compared_with_the_document() {
    let list = list(&small(), None, &|artifact| artifact.name == "picture");
    let sections: Vec<_> = list.sections.iter().map(|s| (s.name.as_str(), s.documented.as_deref())).collect();
    assert_eq!(sections, [("images", None), ("lab", None)]);
    let packages: Vec<_> = list.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(packages, ["torch"], "songlib belongs to an artifact that is not listed");
    assert_eq!(list.conditions, []);
}

#[test]
fn the_text_is_plain_and_says_everything() {
    let list = list(&small(), None, &|_| true);
    insta::assert_snapshot!(render(&list, 120), @r"
    Images
      artifact      kind        files  pinned          size  licence     gate   store        source
      picture       pipeline        2  all        512.0 MiB  Apache-2.0  gated  huggingface  hf:acme/picture@0123456
      guard:1b      image           ?  manifest     1.0 MiB  ?                  ollama       ollama:guard:1b
    Images: 2 artifacts, 2 known files, 2 of them pinned, 513.0 MiB (0.5 GB)
      The document says 0.9 GB.

    The lab
      artifact      kind        files  pinned          size  licence     gate   store        source
      sound         files           2  none      ~300.0 MiB  ?                  songs/three  hf:acme/one and 1 more
      own-lora      in-house        5  none               ?  ?                  songs        local
    The lab: 4 artifacts, 9 known files, 2 of them pinned, ~813.0 MiB (~0.9 GB), and 1 of unknown size
      The document says ~1 GB. The document does not count the sound.

    Copies
      artifact      kind        files  pinned          size  licence     gate   store        source
      picture-copy  known copy      ?  none      ~512.0 MiB  ?                  songs        copy of picture
    Copies: 1 known copy, not counted

    Python packages
      torch==2.11.0, pinned (the document says 2.10.0)
      songlib at abc123

    Cloud models (nothing to store; a private key file each)
      FAST: haiku at Bedrock, key ~/a.key

    Conditions
      clamp: surplus tokens stop the GPU

    All that is listed: 4 artifacts, 9 known files, 2 of them pinned, ~813.0 MiB (~0.9 GB), and 1 of unknown size; not
      counted: 1 known copy
    1 of these has a note: larder list --verbose
    ");
}

#[test]
fn narrow_terminals_lose_the_sources_only() {
    let list = list(&small(), None, &|_| true);
    insta::assert_snapshot!(render(&list, 80), @r"
    Images
      artifact      kind        files  pinned          size  licence     gate   store
      picture       pipeline        2  all        512.0 MiB  Apache-2.0  gated  huggingface
      guard:1b      image           ?  manifest     1.0 MiB  ?                  ollama
    Images: 2 artifacts, 2 known files, 2 of them pinned, 513.0 MiB (0.5 GB)
      The document says 0.9 GB.

    The lab
      artifact      kind        files  pinned          size  licence     gate   store
      sound         files           2  none      ~300.0 MiB  ?                  songs/three
      own-lora      in-house        5  none               ?  ?                  songs
    The lab: 4 artifacts, 9 known files, 2 of them pinned, ~813.0 MiB (~0.9 GB), and
      1 of unknown size
      The document says ~1 GB. The document does not count the sound.

    Copies
      artifact      kind        files  pinned          size  licence     gate   store
      picture-copy  known copy      ?  none      ~512.0 MiB  ?                  songs
      picture-copy is a copy of picture
    Copies: 1 known copy, not counted

    Python packages
      torch==2.11.0, pinned (the document says 2.10.0)
      songlib at abc123

    Cloud models (nothing to store; a private key file each)
      FAST: haiku at Bedrock, key ~/a.key

    Conditions
      clamp: surplus tokens stop the GPU

    All that is listed: 4 artifacts, 9 known files, 2 of them pinned, ~813.0 MiB
      (~0.9 GB), and 1 of unknown size; not counted: 1 known copy
    1 of these has a note: larder list --verbose
    ");
}

#[test]
fn profiles_are_summed_up_and_what_they_leave_out_is_told() {
    let profile = |artifacts: &[&str], except: &[&str], title: Option<&str>| Profile {
        artifacts: artifacts.iter().map(ToString::to_string).collect(),
        except: except.iter().map(ToString::to_string).collect(),
        title: title.map(ToOwned::to_owned),
    };
    let profiles = BTreeMap::from([
        ("all".to_owned(), profile(&["*"], &["tag:duplicate"], Some("Everything that is used"))),
        ("pictures".to_owned(), profile(&["section:images"], &["guard*"], None)),
    ]);
    let (manifests, lock) = (&small(), None);
    let wanted = |artifact: &Declared| artifact.name == "picture";
    let location = |_: &Declared| None;
    let request = Request {
        manifests,
        lock,
        profiles: &profiles,
        wanted: &wanted,
        profile: Some("pictures"),
        location: &location,
    };
    let list = list::list(&request).unwrap();
    let sums: Vec<_> = list.profiles.iter().map(|it| (it.name.as_str(), it.listed, it.total.artifacts)).collect();
    assert_eq!(sums, [("all", false, 4), ("pictures", true, 1)]);
    assert_eq!(list.profiles[1].total, list.total);
    let outside = list.outside.unwrap();
    assert_eq!((outside.artifacts, outside.copies), (3, 1));
    insta::assert_snapshot!(render(&list, 100), @r"
    Images
      artifact  kind      files  pinned       size  licence     gate   store
      picture   pipeline      2  all     512.0 MiB  Apache-2.0  gated  huggingface
    Images: 1 artifact, 2 known files, 2 of them pinned, 512.0 MiB (0.5 GB)

    The lab: 1 artifact, 2 known files, 2 of them pinned, 512.0 MiB (0.5 GB)

    picture: Picture maker
      place: the inventory has no store `huggingface`
      source: hf:acme/picture@0123456789012345678901234567890123456789
      known copies: picture-copy

    Python packages
      torch==2.11.0, pinned (the document says 2.10.0)

    Cloud models (nothing to store; a private key file each)
      FAST: haiku at Bedrock, key ~/a.key

    Profiles
      all: 4 artifacts, 9 known files, 2 of them pinned, ~813.0 MiB (~0.9 GB), and 1 of unknown size
        Everything that is used
      pictures, which is listed here: 1 artifact, 2 known files, 2 of them pinned, 512.0 MiB (0.5 GB)

    All that is listed: 1 artifact, 2 known files, 2 of them pinned, 512.0 MiB (0.5 GB)
    Outside profile pictures: 3 artifacts and 1 known copy; see all with: larder list --all
    ");
}

#[test]
fn one_artifact_is_listed_with_what_there_is_to_know_of_it() {
    let list = list(&small(), None, &|artifact| artifact.name == "picture-copy");
    insta::assert_snapshot!(render(&list, 80), @r"
    Copies
      artifact      kind        files  pinned        size  licence  gate  store
      picture-copy  known copy      ?  none    ~512.0 MiB  ?              songs
      picture-copy is a copy of picture
    Copies: 1 known copy, not counted

    picture-copy
      note: Nobody reads it, and it may be removed.
      place: /models/songs
      copy of: picture
      tags: duplicate

    Python packages
      torch==2.11.0, pinned (the document says 2.10.0)

    Cloud models (nothing to store; a private key file each)
      FAST: haiku at Bedrock, key ~/a.key

    All that is listed: 1 known copy, not counted
    ");
}

#[test]
fn json_has_plain_keys() {
    let json = serde_json::to_value(list(&small(), None, &|_| true)).unwrap();
    let sound = &json["artifacts"][2];
    assert_eq!(sound["size"], serde_json::json!({"bytes": 314_572_800, "certainty": "approximate"}));
    assert_eq!(sound["sources"], serde_json::json!(["hf:acme/one", "hf:acme/two"]));
    assert_eq!(
        (&sound["kind"], &sound["manifest_pinned"], &sound["basis"]),
        (&"files".into(), &false.into(), &"manifest".into())
    );
    assert_eq!(json["sections"][1]["total"]["exact_bytes"], 537_920_194);
}

#[test]
fn the_real_lab_fits_a_terminal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let manifests = Manifests::read(&files).unwrap();
    let list = list(&manifests, None, &|_| true);
    let text = render(&list, 140);
    for artifact in &manifests.artifacts {
        assert!(text.contains(&artifact.name), "{} is not in the text", artifact.name);
    }
    let lab = list.sections.iter().find(|section| section.name == "lab").unwrap();
    // The document's rows sum to about 539 GB, binary and each rounded up; what it only implies is not invented here.
    let gib = lab.total.bytes as f64 / f64::from(1 << 30);
    assert!((525.0..539.0).contains(&gib), "{gib:.1} GiB");
    let too_long = |line: &&str| line.chars().count() > 140;
    assert_eq!(text.lines().find(too_long), None);
}
