//! Mistakes that people make in what they write: each is named with its place, and with what to do.
#![expect(clippy::unwrap_used, clippy::too_many_lines, reason = "tests; most lines are snapshots")]

#[path = "support/program.rs"]
mod program;

use program::{INVENTORY, Lab, Said};

const GOOD: &str = "[[artifact]]\nname = \"good\"\nstore = \"plain\"\nsource = \"local\"\n";

/// What was said of a mistake: nothing on standard output, exit code 2, and a hint for every error.
fn told(title: &str, said: &Said) -> String {
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{title}: {}", said.err);
    let errors = said.err.lines().filter(|line| line.starts_with("error: ")).count();
    let hints = said.err.lines().filter(|line| line.starts_with("hint: ")).count();
    assert!(errors > 0 && errors == hints, "{title}: {}", said.err);
    assert_eq!(said.err.lines().count(), errors + hints, "{title}: {}", said.err);
    format!("── {title}\n{}", said.err)
}

fn all(cases: &[(&str, String)], run: impl Fn(&str) -> Said) -> String {
    cases.iter().map(|(title, text)| told(title, &run(text))).collect()
}

/// Each text as a manifest of a good lab.
fn manifests(cases: &[(&str, &str)]) -> String {
    let cases: Vec<_> = cases.iter().map(|(title, text)| (*title, (*text).to_owned())).collect();
    all(&cases, |text| Lab::new(INVENTORY, text).run(&["list"]))
}

/// Each text after the first keys of an artifact.
fn artifacts(cases: &[(&str, &str)]) -> String {
    let begin = "[[artifact]]\nname = \"x\"\nstore = \"plain\"\n";
    let cases: Vec<_> = cases.iter().map(|(title, text)| (*title, format!("{begin}{text}\n"))).collect();
    all(&cases, |text| Lab::new(INVENTORY, text).run(&["list"]))
}

/// Each change to a good inventory.
fn inventories(cases: &[(&str, &str, &str)]) -> String {
    let changed = |title: &str, from: &str, to: &str| {
        assert!(INVENTORY.contains(from), "{title}: {from}");
        INVENTORY.replacen(from, to, 1)
    };
    let cases: Vec<_> = cases.iter().map(|(title, from, to)| (*title, changed(title, from, to))).collect();
    all(&cases, |text| Lab::new(text, GOOD).run(&["list"]))
}

#[test]
fn values_of_a_manifest() {
    insta::assert_snapshot!(artifacts(&[
        ("unknown key", "source = \"local\"\nsorce = \"local\""),
        ("unknown key, nothing like it", "source = \"local\"\nfavourite-colour = 3"),
        ("a number for a text", "source = \"local\"\ntitle = 3"),
        ("a text for a truth", "source = \"local\"\ngated = \"yes\""),
        ("a text for a list", "source = \"local\"\ntags = \"image\""),
        ("a text for a table", "source = \"local\"\nfile = [\"a.bin\"]"),
        ("a text for a number", "source = \"local\"\nmatch = { glob = \"*\", count = \"3\" }"),
        ("unknown value", "source = \"local\"\ndownload = \"pipelin\""),
        ("negative size", "source = \"local\"\nsize = -3"),
        ("size without a unit known", "source = \"local\"\nsize = \"12 parsecs\""),
        ("size with a fraction of a byte", "source = \"local\"\ntotal = 3.5"),
        ("short digest", "source = \"local\"\nfile = [{ path = \"a\", sha256 = \"abc\" }]"),
        ("digest of another kind", "source = \"local\"\nfile = [{ path = \"a\", md5 = \"f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f\" }]"),
        ("absolute path", "source = \"local\"\nfile = [{ path = \"/etc/passwd\" }]"),
        ("path that leads out", "source = \"local\"\nfile = [{ path = \"../../x\" }]"),
        ("folder that leads out", "source = \"local\"\nfolder = \"..\""),
        ("no such source", "source = \"huggingface:a/b\""),
        ("no repository", "source = \"hf:a/b/../c\""),
        ("empty revision", "source = \"hf:a/b@\""),
        ("no Ollama name", "source = \"ollama:a/b/c/d\""),
        ("secret in an address", "source = \"https://user:secret@example.org/x\""),
        ("relative folder as a source", "source = \"file:models\""),
        ("missing key of a file", "source = \"local\"\nfile = [{ size = 3 }]"),
    ]), @r###"
── unknown key
error: manifests/lab.toml:5:1: unknown key `sorce`
hint: did you mean `source`?
── unknown key, nothing like it
error: manifests/lab.toml:5:1: unknown key `favourite-colour`
hint: known here: name, title, purpose, source, mirrors, alternatives, duplicate-of, generated-by, include, exclude, complete, store, folder, download, size, total, documented, license, gated, tags, smoke, section, manifest, match, note, file
── a number for a text
error: manifests/lab.toml:5:9: `title`: a text is wanted here, not number `3`
hint: write it in quotes: "…"
── a text for a truth
error: manifests/lab.toml:5:9: `gated`: true or false is wanted here, not text "yes"
hint: write true or false, without quotes
── a text for a list
error: manifests/lab.toml:5:8: `tags`: a list is wanted here, not text "image"
hint: write it in brackets: ["…"]
── a text for a table
error: manifests/lab.toml:5:9: `file`: a table is wanted here, not text "a.bin"
hint: write it in braces: { key = "…" }
── a text for a number
error: manifests/lab.toml:5:31: `count`: a whole number is wanted here, not text "3"
hint: write it without quotes, for example 3
── unknown value
error: manifests/lab.toml:5:12: `download`: unknown value `pipelin`
hint: did you mean `pipeline`?
── negative size
error: manifests/lab.toml:5:8: `size`: a size cannot be negative
hint: write bytes as a number, or a text such as "25.7 GiB"
── size without a unit known
error: manifests/lab.toml:5:8: `size`: "12 parsecs" is not a size
hint: write bytes as a number, or a text such as "25.7 GiB" or "26 GB"
── size with a fraction of a byte
error: manifests/lab.toml:5:9: `total`: a size is wanted here, not number `3.5`
hint: write bytes as a whole number, or a text such as "25.7 GiB"
── short digest
error: manifests/lab.toml:5:32: `sha256`: "abc" is not a sha256 digest: 64 hexadecimal digits are needed, this has 3 characters
hint: copy the whole digest, for example from: sha256sum FILE
── digest of another kind
error: manifests/lab.toml:5:29: `md5`: "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f" is not a md5 digest: 32 hexadecimal digits are needed, this has 40 characters
hint: copy the whole digest, for example from: sha256sum FILE
── absolute path
error: manifests/lab.toml:5:18: `path`: "/etc/passwd" cannot be used as a file name here: it is absolute
hint: write a path below the store, such as clip/clip_l.safetensors
── path that leads out
error: manifests/lab.toml:5:18: `path`: "../../x" cannot be used as a file name here: it has a part that is . or ..
hint: write a path below the store, such as clip/clip_l.safetensors
── folder that leads out
error: manifests/lab.toml:5:10: `folder`: ".." cannot be used as a file name here: it has a part that is . or ..
hint: write a path below the store, such as clip/clip_l.safetensors
── no such source
error: manifests/lab.toml:4:10: `source`: "huggingface:a/b" is not a source
hint: write hf:OWNER/NAME[@REVISION][/PATH], ollama:MODEL:TAG, https://…, file:/PATH, local or unidentified
── no repository
error: manifests/lab.toml:4:10: `source`: "hf:a/b/../c" is not a source: "../c" cannot be used as a file name here: it has a part that is . or ..
hint: write a path below the store, such as clip/clip_l.safetensors
── empty revision
error: manifests/lab.toml:4:10: `source`: "hf:a/b@" is not a source: the revision after @ is not a branch, tag or commit
hint: write hf:OWNER/NAME@COMMIT, or leave @… out
── no Ollama name
error: manifests/lab.toml:4:10: `source`: "ollama:a/b/c/d" is not a source: an Ollama name is [HOST/][NAMESPACE/]MODEL[:TAG]
hint: write ollama:MODEL:TAG, as `ollama list` prints it
── secret in an address
error: manifests/lab.toml:4:10: `source`: "https://user:secret@example.org/x" is not a source: a URL with a name or password in it would put a secret into the lock
hint: take the name and the password out of the address
── relative folder as a source
error: manifests/lab.toml:4:10: `source`: "file:models" is not a source: a file: source needs an absolute path, such as file:/srv/models
hint: begin the path with / or ~/
── missing key of a file
error: manifests/lab.toml:5:9: the key `path` is missing
hint: add path = …; docs/formats.md says what it may be
"###);
}

#[test]
fn what_an_artifact_says_about_itself() {
    insta::assert_snapshot!(artifacts(&[
        ("no source", "title = \"X\""),
        ("a glob that is none", "source = \"hf:a/b\"\ninclude = [\"*.json\", \"a[\"]"),
        ("a glob that excludes and is none", "source = \"hf:a/b\"\nexclude = [\"{\"]"),
        ("a pattern that is none", "source = \"local\"\nmatch = { glob = \"[\", count = 3 }"),
        ("a pattern of nothing", "source = \"local\"\nmatch = { glob = \"*.bin\", count = 0 }"),
        ("a file listed twice", "source = \"local\"\nfile = [{ path = \"a\" }, { path = \"b\" }, { path = \"a\" }]"),
        ("digest of an image without an image", "source = \"hf:a/b\"\nmanifest = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\""),
        ("selecting from one file", "source = \"https://example.org/x\"\ninclude = [\"*\"]"),
        ("duplicate of nothing", "duplicate-of = \"y\""),
        ("unknown section", "source = \"local\"\nsection = \"images\""),
        ("unknown store", "source = \"local\"\n[[artifact]]\nname = \"y\"\nstore = \"plian\"\nsource = \"local\""),
        ("a repository in an Ollama store", "source = \"local\"\n[[artifact]]\nname = \"y\"\nstore = \"ollama\"\nsource = \"hf:a/b\""),
        ("an image in a cache", "source = \"local\"\n[[artifact]]\nname = \"y\"\nstore = \"cache\"\nsource = \"ollama:a:b\""),
    ]), @r###"
── no source
error: manifests/lab.toml:1:1: artifact `x`: it has no `source`
hint: write source = "hf:OWNER/NAME", "ollama:MODEL:TAG", "https://…", "local" or "unidentified", or give every file one
── a glob that is none
error: manifests/lab.toml:5:11: artifact `x`: `include`: "a[" is not a glob: unclosed character class; missing ']'
hint: * matches across folders; close every [ and {
── a glob that excludes and is none
error: manifests/lab.toml:5:11: artifact `x`: `exclude`: "{" is not a glob: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)
hint: * matches across folders; close every [ and {
── a pattern that is none
error: manifests/lab.toml:5:9: artifact `x`: `match`: "[" is not a glob: unclosed character class; missing ']'
hint: * matches within a folder, ** across folders; close every [ and {
── a pattern of nothing
error: manifests/lab.toml:5:35: artifact `x`: `match` wants 0 files
hint: write how many files must match
── a file listed twice
error: manifests/lab.toml:5:50: artifact `x`: the file "a" is listed twice
hint: remove one of the two
── digest of an image without an image
error: manifests/lab.toml:5:12: artifact `x`: `manifest` is the digest of an Ollama image, but the source is not ollama:…
hint: use sha256 on the files instead
── selecting from one file
error: manifests/lab.toml:5:11: artifact `x`: `include` selects files of a hub repository or a folder, but the source is neither
hint: list the files instead
── duplicate of nothing
error: manifests/lab.toml:4:16: artifact `x`: it is a duplicate of `y`, which no manifest declares
hint: correct the name, or add an [[artifact]] table for it
── unknown section
error: manifests/lab.toml:5:11: artifact `x`: no manifest declares the section `images`
hint: add a [[section]] table
── unknown store
error: manifests/lab.toml:7:9: artifact `y`: the inventory has no store `plian`
hint: did you mean `plain`?
── a repository in an Ollama store
error: manifests/lab.toml:8:10: artifact `y`: store `ollama` has the layout ollama, which cannot hold this source
hint: choose another store, or a source that begins with ollama:
── an image in a cache
error: manifests/lab.toml:8:10: artifact `y`: store `cache` has the layout hf-cache, which cannot hold this source
hint: choose another store, or a source that begins with hf:
"###);
}

#[test]
fn what_manifests_say_about_each_other() {
    let hub = |name: &str, digit: &str| {
        format!("[[artifact]]\nname = \"{name}\"\nstore = \"cache\"\nsource = \"hf:acme/sd@{}\"\n", digit.repeat(40))
    };
    let file = |name: &str, size: u32| {
        format!(
            "[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"local\"\nfile = [{{ path = \"a.bin\", size = {size} }}]\n"
        )
    };
    let cases = [
        ("bad name", GOOD.replace("good", "Good Model")),
        ("name taken", GOOD.repeat(2)),
        ("two commits of one repository in one cache", hub("sd", "1") + &hub("sd-new", "2")),
        ("two contents of one path in one folder", file("a", 3) + &file("b", 4)),
        ("duplicate of a name with a slip", format!("{GOOD}[[artifact]]\nname = \"copy\"\nstore = \"plain\"\nduplicate-of = \"goood\"\n")),
        ("section twice", "[[section]]\nname = \"a\"\ntitle = \"A\"\n".repeat(2)),
        ("section below nothing", "[[section]]\nname = \"a\"\ntitle = \"A\"\npart-of = \"b\"\n".to_owned()),
        ("package for nobody", format!("{GOOD}[[package]]\nname = \"heartlib\"\nneeded-by = [\"goo\"]\n")),
        ("package from nowhere", "[[package]]\nname = \"heartlib\"\nartifact = \"wheel\"\n".to_owned()),
        (
            "condition of nobody",
            "[[condition]]\nname = \"c\"\nartifacts = [\"x\"]\nwhy = \"w\"\nfix = \"f\"\nrequire = { kind = \"text-present\", file = \"a\", text = \"b\" }\n".to_owned(),
        ),
        (
            "condition of an unknown kind",
            "[[condition]]\nname = \"c\"\nwhy = \"w\"\nfix = \"f\"\nrequire = { kind = \"text-presents\", file = \"a\", text = \"b\" }\n".to_owned(),
        ),
    ];
    insta::assert_snapshot!(all(&cases, |text| Lab::new(INVENTORY, text).run(&["list"])), @r###"
── bad name
error: manifests/lab.toml:2:8: artifact `Good Model`: the name begins with a lower-case letter or a digit, and has only these and . _ - : + in it
hint: for example sd35-large or qwen3:4b
── name taken
error: manifests/lab.toml:6:8: artifact `good`: the name is taken already, at manifests/lab.toml:2:8
hint: give each artifact a name of its own
── two commits of one repository in one cache
error: manifests/lab.toml:8:10: artifact `sd-new`: it pins acme/sd at 2222222222222222222222222222222222222222, and `sd` (manifests/lab.toml:4:10) pins it at 1111111111111111111111111111111111111111: in store `cache` both would be its `main`
hint: pin the same commit in both, or give one of them a store of its own
── two contents of one path in one folder
error: manifests/lab.toml:10:8: artifact `b`: in store `plain`, a.bin is also a file of `a` (manifests/lab.toml:4:10), with other content
hint: give one of them another path or `folder`
── duplicate of a name with a slip
error: manifests/lab.toml:8:16: artifact `copy`: it is a duplicate of `goood`, which no manifest declares
hint: did you mean `good`?
── section twice
error: manifests/lab.toml:5:8: section `a` is declared twice, first at manifests/lab.toml:2:8
hint: remove one of the two
── section below nothing
error: manifests/lab.toml:4:11: section `a`: `part-of` leads to no section, or back to itself
hint: name a section that some manifest declares
── package for nobody
error: manifests/lab.toml:7:13: package `heartlib` names the artifact `goo`, which no manifest declares
hint: did you mean `good`?
── package from nowhere
error: manifests/lab.toml:3:12: package `heartlib` names the artifact `wheel`, which no manifest declares
hint: correct the name, or add an [[artifact]] table for it
── condition of nobody
error: manifests/lab.toml:3:13: condition `c` names the artifact `x`, which no manifest declares
hint: correct the name, or add an [[artifact]] table for it
── condition of an unknown kind
error: manifests/lab.toml:5:20: `kind`: unknown value `text-presents`
hint: did you mean `text-present`?
"###);
}

#[test]
fn texts_that_are_no_toml() {
    insta::assert_snapshot!(manifests(&[
        ("no quotes", "[[artifact]]\nname = x\n"),
        ("quote not closed", "[[artifact]]\nname = \"x\n"),
        ("key twice", "[[artifact]]\nname = \"x\"\nname = \"y\"\n"),
        ("bracket not closed", "[[artifact]\nname = \"x\"\n"),
        ("no value", "[[artifact]]\nname =\n"),
        ("unknown table", "[[artefact]]\nname = \"x\"\n"),
        ("a table instead of a list of tables", "[artifact]\nname = \"x\"\n"),
    ]), @r###"
── no quotes
error: manifests/lab.toml:2:8: string values must be quoted, expected literal string
hint: write it in quotes: "…"
── quote not closed
error: manifests/lab.toml:2:10: invalid basic string, expected `"`
hint: one key = value in each line, texts in quotes, tables as [name] or [[name]]
── key twice
error: manifests/lab.toml:3:1: duplicate key
hint: remove one of the two
── bracket not closed
error: manifests/lab.toml:1:12: unclosed array table, expected `]`
hint: one key = value in each line, texts in quotes, tables as [name] or [[name]]
── no value
error: manifests/lab.toml:2:7: string values must be quoted, expected literal string
hint: write it in quotes: "…"
── unknown table
error: manifests/lab.toml:1:3: unknown key `artefact`
hint: did you mean `artifact`?
── a table instead of a list of tables
error: manifests/lab.toml:1:1: `artifact`: a list of tables is wanted here, not a table
hint: write its name in double brackets: [[…]]
"###);
}

#[test]
fn inventory() {
    insta::assert_snapshot!(inventories(&[
        ("unknown key", "machine =", "mashine ="),
        ("unknown table", "[profiles.all]", "[profile.all]"),
        ("unknown layout", "hf-cache", "hf_cache"),
        ("store without a path", ", path = \"~/plain\"", ""),
        ("store at a relative path", "~/plain", "models"),
        ("store at another user's home", "~/plain", "~ollama/models"),
        ("api of a folder", "path = \"~/plain\"", "path = \"~/plain\", api = \"http://127.0.0.1:11434\""),
        ("api that is no address", "path = \"~/ollama\"", "path = \"~/ollama\", api = \"127.0.0.1:11434\""),
        ("api without a scheme", "path = \"~/ollama\"", "path = \"~/ollama\", api = \"localhost:11434\""),
        ("unknown profile", "profile = \"all\"", "profile = \"al\""),
        ("unknown profile of all machines", "machine = \"pc1\"", "profile = \"nothing\""),
        ("unknown machine", "machine = \"pc1\"", "machine = \"pc2\""),
        ("machine moves an unknown store", "profile = \"all\"", "stores = { plane = \"/srv\" }"),
        ("machine moves a store to a relative path", "profile = \"all\"", "stores = { plain = \"srv\" }"),
        ("bad selection", "[\"*\"]", "[\"*\", \"tag:[\"]"),
        ("profile that selects nothing", "[\"*\"]", "[\"tag:imgae\"]"),
        ("bad rate", "[machines.pc1]", "[sources]\nmax-rate = \"80 MB\"\n[machines.pc1]"),
        ("bad rate of a machine", "profile = \"all\"", "max-rate = \"fast\""),
        ("unknown kind of source", "[machines.pc1]", "[sources]\norder = [\"usb\"]\n[machines.pc1]"),
        ("nothing at a time", "[machines.pc1]", "[sources]\nparallel = 0\n[machines.pc1]"),
        ("hub without a scheme", "[machines.pc1]", "[sources]\nhub = \"pc1:8014\"\n[machines.pc1]"),
        ("policy that is no glob", "[machines.pc1]", "[policy]\ndeny = [\"[\"]\n[machines.pc1]"),
        ("no manifest there", "manifests/*.toml", "models/*.toml"),
        ("manifests by a bad glob", "manifests/*.toml", "manifests/[.toml"),
    ]), @r###"
── unknown key
error: inventory.toml:2:1: unknown key `mashine`
hint: did you mean `machine`?
── unknown table
error: inventory.toml:9:2: `profile`: a text is wanted here, not a table
hint: write it in quotes: "…"; or look for another name of the table
── unknown layout
error: inventory.toml:6:20: `layout`: unknown value `hf_cache`
hint: did you mean `hf-cache`?
── store without a path
error: inventory.toml:5:9: the key `path` is missing
hint: add path = …; docs/formats.md says what it may be
── store at a relative path
error: inventory.toml:5:37: `path`: "models" depends on the folder that larder is started in
hint: begin the path with / or ~/
── store at another user's home
error: inventory.toml:5:37: `path`: "~ollama/models" depends on the folder that larder is started in
hint: begin the path with / or ~/
── api of a folder
error: inventory.toml:5:54: store `plain`: only a store with layout "ollama" can have an api
hint: remove `api`, or change the layout
── api that is no address
error: inventory.toml:7:56: `api`: relative URL without a base: "127.0.0.1:11434"
hint: begin the address with http:// or https://
── api without a scheme
error: inventory.toml:7:56: `api`: "localhost:11434" is not an address of a server
hint: begin the address with http:// or https://
── unknown profile
error: inventory.toml:13:11: machine `pc1` wants the profile `al`, which [profiles] does not have
hint: did you mean `all`?
── unknown profile of all machines
error: inventory.toml:2:11: the inventory wants the profile `nothing`, which [profiles] does not have
hint: known here: all
── unknown machine
error: inventory.toml:2:11: this is the machine `pc2`, which [machines] does not have
hint: did you mean `pc1`?
── machine moves an unknown store
error: inventory.toml:13:20: machine `pc1` moves the store `plane`, which [stores] does not have
hint: did you mean `plain`?
── machine moves a store to a relative path
error: inventory.toml:13:20: `plain`: "srv" depends on the folder that larder is started in
hint: begin the path with / or ~/
── bad selection
error: inventory.toml:10:19: `artifacts`: "tag:[" is not a selection: unclosed character class; missing ']'
hint: use names with *, tag:T, store:S or section:S
── profile that selects nothing
error: inventory.toml:10:13: profile `all` selects no artifact
hint: check the names: a profile of * has everything
── bad rate
error: inventory.toml:13:12: [sources] `max-rate`: "80 MB" is not a rate such as "80 MB/s"
hint: write a size per second
── bad rate of a machine
error: inventory.toml:13:12: machine `pc1`: `max-rate`: "fast" is not a rate such as "80 MB/s"
hint: write a size per second
── unknown kind of source
error: inventory.toml:13:10: `order`: unknown value `usb`
hint: known here: drive, peer, bucket, upstream
── nothing at a time
error: inventory.toml:13:12: `parallel` is 0: nothing could be fetched
hint: write at least 1
── hub without a scheme
error: inventory.toml:13:7: `hub`: "pc1:8014" is not an address of a server
hint: begin the address with http:// or https://
── policy that is no glob
error: inventory.toml:13:9: `deny`: "[" is not a selection: unclosed character class; missing ']'
hint: use names with *, tag:T, store:S or section:S
── no manifest there
error: inventory.toml:1:14: `manifests`: "models/*.toml": no file matches
hint: manifests are named relative to the inventory, for example "manifests/*.toml"
── manifests by a bad glob
error: inventory.toml:1:14: `manifests`: "manifests/[.toml": unclosed character class; missing ']'
hint: manifests are named relative to the inventory, for example "manifests/*.toml"
"###);
}

#[test]
fn empty_stores() {
    let cases = [
        ("no stores", "manifests = []\n".to_owned()),
        ("empty stores", "manifests = []\n[stores]\n".to_owned()),
        ("nothing at all", String::new()),
    ];
    insta::assert_snapshot!(all(&cases, |text| Lab::new(text, GOOD).run(&["list"])), @r###"
── no stores
error: inventory.toml:1:1: there is no table [stores]
hint: add it, with at least one store
── empty stores
error: inventory.toml:2:1: [stores] is empty
hint: declare at least one, for example huggingface = { layout = "hf-cache", path = "~/.cache/huggingface/hub" }
── nothing at all
error: inventory.toml:1:1: there is no table [stores]
hint: add it, with at least one store
"###);
}

#[test]
fn lock() {
    let entry = "{\"name\":\"good\",\"store\":\"plain\",\"source\":\"local\",\"declared\":\"0\",\"origin\":\"pins\",\"complete\":true,\"files\":[\n  {\"path\":\"a\"}]}";
    let good = format!("{{\"version\": 1, \"revision\": 0, \"artifacts\": [\n{entry}\n]}}\n");
    let cases = [
        ("another version", good.replace("\"version\": 1", "\"version\": 7")),
        ("cut off", good[..good.len() / 2].to_owned()),
        ("merge conflict", good.replace("{\"name\"", "<<<<<<< HEAD\n{\"name\"")),
        ("unknown field", good.replace("\"path\":\"a\"", "\"path\":\"a\",\"colour\":\"red\"")),
        ("path that leads out", good.replace("\"path\":\"a\"", "\"path\":\"../a\"")),
        ("a source that is none", good.replace("\"source\":\"local\"", "\"source\":\"nowhere\"")),
        ("missing field", good.replace("\"store\":\"plain\",", "")),
        ("empty", String::new()),
    ];
    let run = |text: &str| {
        let lab = Lab::new(INVENTORY, GOOD);
        lab.write("inventory.lock", text);
        lab.run(&["status"])
    };
    insta::assert_snapshot!(all(&cases, run), @r###"
── another version
error: inventory.lock: this is a lock of version 7, this larder reads version 1
hint: use the larder that wrote it; or remove it, and write it anew with: larder lock
── cut off
error: inventory.lock:2:40: the file ends too early
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
── merge conflict
error: inventory.lock:2:1: expected value
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
── unknown field
error: inventory.lock:3:22: unknown field `colour`
hint: a newer larder wrote it: use that one; or remove the lock, and write it anew with: larder lock
── path that leads out
error: inventory.lock:3:16: "../a" cannot be used as a file name here: it has a part that is . or ..
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
── a source that is none
error: inventory.lock:2:49: "nowhere" is not a source: write hf:OWNER/NAME[@REVISION][/PATH], ollama:MODEL:TAG, https://…, file:/PATH, local or unidentified
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
── missing field
error: inventory.lock:3:16: missing field `store`
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
── empty
error: inventory.lock:1:1: the file ends too early
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
"###);
}

#[test]
fn files_that_cannot_be_read() {
    let latin1 = Lab::new(INVENTORY, GOOD);
    latin1.write("manifests/latin1.toml", b"# f\xfcr alle\n");
    let folder = Lab::new(INVENTORY, GOOD);
    folder.write("inventory.lock/x", "");
    let lab = Lab::new(INVENTORY, GOOD);
    let nowhere = tempfile::tempdir().unwrap();
    let mut bare = program::program(nowhere.path());
    bare.arg("status").current_dir(nowhere.path());
    let text = [
        told("not UTF-8", &latin1.run(&["list"])),
        told("a folder for a lock", &folder.run(&["list"])),
        told("an inventory that is not there", &lab.run(&["list", "--inventory", "other.toml"])),
        told("an inventory that is a folder", &lab.run(&["list", "--inventory", "manifests"])),
        told("no inventory anywhere", &program::said(&mut bare, nowhere.path())),
    ];
    insta::assert_snapshot!(text.concat(), @r###"
── not UTF-8
error: manifests/latin1.toml: cannot be read: stream did not contain valid UTF-8
hint: save it as UTF-8 in your editor, or with: iconv -t UTF-8
── a folder for a lock
error: inventory.lock: cannot be read: Is a directory (os error 21)
hint: a folder is in its place: move it away, or name a file
── an inventory that is not there
error: other.toml: cannot be read: No such file or directory (os error 2)
hint: begin with the inventory.toml of larder's repository, or name yours with --inventory
── an inventory that is a folder
error: manifests: cannot be read: Is a directory (os error 21)
hint: a folder is in its place: move it away, or name a file
── no inventory anywhere
error: There is no inventory; looked for inventory.toml, LAB/home/.config/larder/inventory.toml, /etc/larder/inventory.toml
hint: name one with --inventory PATH; larder's repository has one to begin with, and larder demo needs none
"###);
}

#[test]
fn mistakes_of_several_files_come_together() {
    let lab = Lab::new(INVENTORY, "[[artifact]]\nname = \"X\"\nstore = \"plain\"\n");
    lab.write("manifests/more.toml", "[[artifact]]\nname = 3\n");
    lab.write(
        "manifests/most.toml",
        "[[artifact]]\nname = \"y\"\nstore = \"plain\"\nsource = \"local\"\nduplicate-of = \"z\"\n",
    );
    lab.write("inventory.lock", "{");
    insta::assert_snapshot!(told("three files", &lab.run(&["plan"])), @r###"
── three files
error: manifests/more.toml:2:8: `name`: a text is wanted here, not number `3`
hint: write it in quotes: "…"
error: manifests/lab.toml:2:8: artifact `X`: the name begins with a lower-case letter or a digit, and has only these and . _ - : + in it
hint: for example sd35-large or qwen3:4b
error: manifests/lab.toml:1:1: artifact `X`: it has no `source`
hint: write source = "hf:OWNER/NAME", "ollama:MODEL:TAG", "https://…", "local" or "unidentified", or give every file one
error: inventory.lock:1:1: the file ends too early
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
"###);
    lab.write("inventory.toml", INVENTORY.replace("[\"*\"]", "[\"[\"]").replace("\"pc1\"", "\"pc3\""));
    insta::assert_snapshot!(told("inventory and lock", &lab.run(&["plan"])), @r###"
── inventory and lock
error: inventory.toml:2:11: this is the machine `pc3`, which [machines] does not have
hint: did you mean `pc1`?
error: inventory.toml:10:14: `artifacts`: "[" is not a selection: unclosed character class; missing ']'
hint: use names with *, tag:T, store:S or section:S
error: inventory.lock:1:1: the file ends too early
hint: larder writes this file: restore it from git; or remove it, and write it anew with: larder lock
"###);
}

#[test]
fn what_is_asked_on_the_command_line() {
    let lab = Lab::new(INVENTORY, GOOD);
    let ask = |title: &str, arguments: &[&str]| told(title, &lab.run(arguments));
    let mut endpoint = lab.command(&["lock"]);
    endpoint.env("HF_ENDPOINT", "huggingface.co");
    let text = [
        ask("--only selects nothing", &["status", "--only", "goood", "--only", "tag:image"]),
        ask("--only is no selection", &["status", "--only", "["]),
        ask("--update is no selection", &["lock", "--update", "tag:["]),
        ask("unknown machine", &["status", "--machine", "pc11"]),
        ask("demo into a full folder", &["demo", "--keep", "manifests"]),
        ask("manual page of nothing", &["man", "aply"]),
        told("HF_ENDPOINT is no address", &program::said(&mut endpoint, &lab.path(""))),
    ];
    insta::assert_snapshot!(text.concat(), @r###"
── --only selects nothing
error: --only goood --only tag:image selects nothing in profile all
hint: see the names with: larder list --all
── --only is no selection
error: "[" is not a selection: unclosed character class; missing ']'
hint: use names with *, tag:T, store:S or section:S
── --update is no selection
error: "tag:[" is not a selection: unclosed character class; missing ']'
hint: use names with *, tag:T, store:S or section:S
── unknown machine
error: The inventory has no machine `pc11`
hint: did you mean `pc1`?
── demo into a full folder
error: manifests is not empty
hint: name a new folder
── manual page of nothing
error: There is no command `aply`
hint: did you mean `apply`?
── HF_ENDPOINT is no address
error: HF_ENDPOINT is "huggingface.co", which is no address of a server
hint: begin it with http:// or https://, or unset it
"###);
}
